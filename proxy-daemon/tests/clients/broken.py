"""What a Python client sees of a broken answer: broken.py LIBRARY URL [SECONDS].

Prints one JSON object: the names of the exceptions from the outermost to the
innermost cause, and what they say; or the status and the body's length.
"""
import json
import sys

library, url = sys.argv[1:3]
patience = float(sys.argv[3]) if len(sys.argv) > 3 else 20

try:
    if library == "http.client":
        import http.client
        import ssl
        import urllib.parse

        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPSConnection(parts.netloc, timeout=patience, context=ssl.create_default_context())
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    else:
        import httpx

        with httpx.Client(http2=library == "httpx2", timeout=patience) as client:
            answer = client.get(url)
            status, body = answer.status_code, answer.content
    print(json.dumps({"status": status, "length": len(body)}))
except Exception as error:
    names, said = [], []
    while error is not None:
        names.append(type(error).__name__)
        said.append(str(error))
        error = error.__cause__ or error.__context__
    print(json.dumps({"names": names, "said": said}))
