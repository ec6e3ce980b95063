"""GET (or PUT of a file) by an HTTP library, unmodified: fetch.py LIBRARY URL [FILE].

Prints one JSON object: status, body length and digest, protocol.
"""
import hashlib
import json
import os
import sys

if os.environ.get("RETRYSCOPE_TEST_FORGET"):
    # Only what the mount namespace gives is left.
    for name in [name for name in os.environ if "CERT" in name or "BUNDLE" in name]:
        del os.environ[name]

library, url = sys.argv[1:3]
data = open(sys.argv[3], "rb").read() if len(sys.argv) > 3 else None


def show(status, body, version, headers):
    print(
        json.dumps(
            {
                "status": status,
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
                "text": body[:200].decode("latin1"),
                "version": version,
                "headers": [[k.lower(), v] for k, v in headers],
            }
        )
    )


if library == "requests":
    import requests

    answer = requests.request("PUT" if data is not None else "GET", url, data=data)
    show(answer.status_code, answer.content, "HTTP/1.1", answer.headers.items())
elif library == "urllib":
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, data=data, method="PUT" if data is not None else "GET")
    try:
        answer = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        answer = error
    show(answer.status, answer.read(), "HTTP/1.1", answer.headers.items())
elif library in ("httpx", "httpx-h2", "httpx-chunked", "httpx-h2-chunked"):
    import httpx

    def pieces():
        at, size = 0, 1
        while at < len(data):
            yield data[at : at + size]
            at += size
            size = min(size * 2 + 1, 60000)

    content = pieces() if "chunked" in library else data
    with httpx.Client(http2="h2" in library, timeout=60) as client:
        answer = client.request("PUT" if data is not None else "GET", url, content=content)
        show(answer.status_code, answer.content, answer.http_version, answer.headers.multi_items())
else:
    sys.exit(f"no such library: {library}")
