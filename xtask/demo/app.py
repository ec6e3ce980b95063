"""An ordinary program that uses S3. It knows nothing of retryscope.

boto3 retries by itself and does not say so; the one addition here is a
handler on botocore's own `needs-retry` event that prints each attempt.
"""

import boto3

BUCKET = "retryscope-demo"


def show(response, operation, attempts, caught_exception, **_):
    outcome = caught_exception if response is None else response[0].status_code
    print(f"{operation.name:<12} attempt {attempts}  {outcome}", flush=True)


s3 = boto3.client(
    "s3",
    region_name="eu-west-1",
    aws_access_key_id="AKIDEXAMPLE",
    aws_secret_access_key="example-secret",
)
s3.meta.events.register_first("needs-retry.s3", show)

buckets = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
print(f"buckets: {', '.join(buckets)}", flush=True)

s3.put_object(Bucket=BUCKET, Key="greeting.txt", Body=b"hello")
body = s3.get_object(Bucket=BUCKET, Key="greeting.txt")["Body"].read()
print(f"greeting.txt: {body.decode()}", flush=True)
