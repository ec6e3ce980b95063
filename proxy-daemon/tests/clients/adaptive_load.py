"""PutObject from 16 threads of one adaptive boto3 client: adaptive_load.py SECONDS.

Prints one JSON object: attempts and throttles of the first and of the last
third of the time, from botocore's own hooks.
"""
import json
import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

seconds = float(sys.argv[1])
client = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
    config=Config(retries={"mode": "adaptive", "max_attempts": 10}, max_pool_connections=16),
)
begun = time.monotonic()
lock = threading.Lock()
attempts, throttled = [], []


def seen(response, **_):
    now = time.monotonic() - begun
    with lock:
        attempts.append(now)
        if response is not None and response[0].status_code == 503:
            throttled.append(now)


client.meta.events.register_first("needs-retry.s3.PutObject", seen)


def work():
    while time.monotonic() - begun < seconds:
        try:
            client.put_object(Bucket="bucket", Key="empty/200", Body=b"x")
        except ClientError:
            pass


threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()


def within(times, start, end):
    return sum(start <= at < end for at in times)


third = seconds / 3
print(
    json.dumps(
        {
            "first": [within(attempts, 0, third), within(throttled, 0, third)],
            "last": [within(attempts, 2 * third, seconds), within(throttled, 2 * third, seconds)],
            "third": third,
        }
    )
)
