"""Asks without a pause until stdin ends: steady.py HOST [keep].

One connection per request, or with `keep` one for as many as it lasts. Prints a JSON object per request: when it began
and ended (seconds of the monotonic clock), whether the certificate was retryscope's, the status, the error if any.
"""
import http.client
import json
import ssl
import sys
import threading
import time

host, keep = sys.argv[1], len(sys.argv) > 2
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()


def fresh():
    connection = http.client.HTTPSConnection(host, 443, timeout=15, context=context)
    connection.connect()
    return connection, b"retryscope authority" in connection.sock.getpeercert(binary_form=True)


connection = None
while not ended.is_set():
    row = {"began": time.monotonic(), "intercepted": None, "status": None, "error": None}
    try:
        if connection is None:
            connection, intercepted = fresh()
        row["intercepted"] = intercepted
        connection.request("GET", "/hello")
        response = connection.getresponse()
        response.read()
        row["status"] = response.status
        if response.will_close or not keep:
            connection.close()
            connection = None
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
        connection = None
        # What is refused at once is not asked for thousands of times a second.
        ended.wait(0.02)
    row["ended"] = time.monotonic()
    print(json.dumps(row), flush=True)
