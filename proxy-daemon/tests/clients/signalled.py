"""A client that says which attempt it makes, as AWS SDKs do: signalled.py URL ATTEMPTS WAIT.

Tries until it gets a 2xx, at most ATTEMPTS times, WAIT seconds apart. Prints the statuses.
"""
import sys
import time
import urllib.error
import urllib.request
import uuid

url, attempts, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
call = str(uuid.uuid4())
for number in range(1, attempts + 1):
    headers = {"amz-sdk-invocation-id": call, "amz-sdk-request": f"attempt={number}; max={attempts}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            answer.read()
            print(answer.status)
            break
    except urllib.error.HTTPError as error:
        error.read()
        print(error.code, flush=True)
    if number < attempts:
        time.sleep(wait)
