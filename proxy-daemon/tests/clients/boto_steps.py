"""boto3, one call for each line on standard input: the name of a method of
its S3 client. Prints the line again, and what came of it."""
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

client = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="AKIDEXAMPLE",
    aws_secret_access_key="hush-hush",
    aws_session_token="session-token-hush",
    config=Config(retries={"mode": "standard", "total_max_attempts": 4}),
)
print("ready", flush=True)
for line in sys.stdin:
    try:
        getattr(client, line.strip())()
        print(line.strip(), "ok", flush=True)
    except ClientError as error:
        print(line.strip(), error.response["Error"]["Code"], flush=True)
