"""Asks S3 for its buckets by boto3, for each line on its standard input.

Prints what came of each, and what botocore's own hooks saw: the attempts'
statuses, and how long it waited between them.
"""
import sys
import time

import boto3
from botocore.config import Config

statuses, waits, last = [], [], [None]


def before_send(**_):
    if last[0] is not None:
        waits.append((time.monotonic() - last[0]) * 1000)


def needs_retry(response, **_):
    statuses.append(response[0].status_code if response is not None else 0)
    last[0] = time.monotonic()


client = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    config=Config(retries={"mode": "standard", "total_max_attempts": 5}),
)
client.meta.events.register("before-send.s3.*", before_send)
client.meta.events.register_first("needs-retry.s3.*", needs_retry)
print("ready", flush=True)
for _ in sys.stdin:
    statuses.clear()
    waits.clear()
    last[0] = None
    buckets = client.list_buckets()["Buckets"]
    told = ",".join(map(str, statuses))
    waited = ",".join(f"{wait:.0f}" for wait in waits)
    print(f"done: {len(buckets)} buckets after {told}; waited {waited} ms", flush=True)
