"""Puts an object and gets one with boto3: s3.py ORIGIN"""
import hashlib
import sys

import boto3
from botocore.config import Config

client = boto3.client(
    "s3",
    endpoint_url=sys.argv[1],
    region_name="eu-west-1",
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    config=Config(s3={"addressing_style": "path"}),
)
client.put_object(Bucket="bucket", Key="up", Body=b"0123456789" * 5000)
body = client.get_object(Bucket="bucket", Key="down")["Body"].read()
print(len(body), hashlib.sha256(body).hexdigest())
