"""An S3 outage as its threads feel it: outage.py ROUNDS SECONDS.

64 threads of one boto3 client put an object each at the beginning of every
round, and rest until the next. Prints one JSON object: the time during which
at least one call waited between two of its attempts, the process's time from
its first attempt on, and how many calls there were, were retried and failed.
"""
import http.client
import json
import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

rounds, seconds = int(sys.argv[1]), float(sys.argv[2])
THREADS = 64
client = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
    config=Config(
        retries={"mode": "standard", "max_attempts": 4},
        max_pool_connections=THREADS,
        request_checksum_calculation="when_required",
    ),
)
# Threads that wait for the interpreter would feel that, and not the service.
sys.setswitchinterval(0.0002)
lock = threading.Lock()
mine = threading.local()
waits, counts, first = [], {"calls": 0, "retries": 0, "failed": 0}, []


begin = http.client.HTTPResponse.begin


def answered(self):
    """The answer's head is there: what the library makes of it comes later."""
    begin(self)
    mine.ended = time.monotonic()


http.client.HTTPResponse.begin = answered


def sending(**_):
    now = time.monotonic()
    with lock:
        if not first:
            first.append(now)
        if mine.attempts:
            waits.append((mine.ended, now))
            counts["retries"] += 1
    mine.attempts += 1


client.meta.events.register_last("before-send.s3.PutObject", sending)
gate = threading.Barrier(THREADS)


def work(number):
    for round_number in range(rounds):
        gate.wait()
        begun = time.monotonic()
        mine.attempts = 0
        try:
            client.put_object(Bucket="bucket", Key="empty/200", Body=b"x" * 100)
        except ClientError:
            with lock:
                counts["failed"] += 1
        with lock:
            counts["calls"] += 1
        # The job's own pace.
        time.sleep(max(0, seconds - (time.monotonic() - begun)))


threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

stalled, end = 0, 0
for start, stop in sorted(waits):
    stalled += max(0, stop - max(start, end))
    end = max(end, stop)
print(json.dumps(counts | {"stalled": stalled, "observed": time.monotonic() - first[0]}))
