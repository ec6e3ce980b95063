"""Takes a stream piece by piece and says so of each: lockstep.py events|events2|bedrock HOST.

Server-sent events by httpx over HTTP/1.1 or HTTP/2, or an AWS event stream by boto3. Prints one JSON object.
"""
import hashlib
import http.client
import json
import ssl
import sys

what, host = sys.argv[1:]
digest, count = hashlib.sha256(), 0
# The acknowledgements go over a connection of their own.
other = http.client.HTTPSConnection(host, timeout=20, context=ssl.create_default_context())


def got(piece):
    global count
    digest.update(piece)
    other.request("POST", f"/got/{count}")
    other.getresponse().read()
    count += 1


if what == "bedrock":
    import boto3

    client = boto3.client(
        "bedrock-runtime",
        region_name="eu-west-1",
        endpoint_url=f"https://{host}",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
    )
    answer = client.invoke_model_with_response_stream(modelId="model", body=b"{}")
    for event in answer["body"]:
        got(event["chunk"]["bytes"])
else:
    import httpx

    with httpx.Client(http2=what == "events2", timeout=20) as client, client.stream("GET", f"https://{host}/events") as answer:
        event = []
        for line in answer.iter_lines():
            event.append(line)
            if not line:
                got("\n".join(event).encode())
                event = []
print(json.dumps({"pieces": count, "sha256": digest.hexdigest()}))
