"""PUTs from 16 threads for some seconds: put_load.py HOST SECONDS.

Prints one JSON object: how many were accepted, how many were answered with
S3's own SlowDown, and everything else.
"""
import http.client
import json
import ssl
import sys
import threading
import time
import xml.etree.ElementTree

host, seconds = sys.argv[1], float(sys.argv[2])
context = ssl.create_default_context()
accepted, slowed, other = [0] * 16, [0] * 16, []
gate = threading.Barrier(16)


def work(number):
    connection = http.client.HTTPSConnection(host, context=context)
    connection.connect()
    gate.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            connection.request("PUT", f"/prefix/{number}", body=b"x" * 64)
            answer = connection.getresponse()
            body = answer.read()
        except (http.client.HTTPException, OSError) as error:
            other.append(repr(error))
            return
        if answer.status == 200:
            accepted[number] += 1
            continue
        root = xml.etree.ElementTree.fromstring(body)
        valid = (answer.status, answer.reason, root.tag, root.findtext("Code")) == (503, "Slow Down", "Error", "SlowDown")
        if not valid or not answer.headers["x-amz-request-id"] or root.findtext("RequestId") != answer.headers["x-amz-request-id"]:
            other.append([answer.status, answer.reason, body.decode("latin1")])
        slowed[number] += 1
        connection.close()


threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"accepted": sum(accepted), "slowed": sum(slowed), "other": other[:3]}))
