"""One call of a client that retries, and how often it asked: truth.py CLIENT.

Prints one JSON object: the requests that were sent, as the client's own
library counts them.
"""
import json
import sys

sent = 0


def count(*_, **__):
    global sent
    sent += 1


def count_requests():
    """Every request that goes through the library requests."""
    import requests.adapters

    send = requests.adapters.HTTPAdapter.send

    def counted(self, *args, **kwargs):
        count()
        return send(self, *args, **kwargs)

    requests.adapters.HTTPAdapter.send = counted


def urllib3_retry():
    import urllib3

    retry = urllib3.Retry(total=5, status_forcelist=[503], backoff_factor=0.2)
    answer = urllib3.PoolManager().request("GET", "https://api.example.com/status/200", retries=retry)
    assert answer.status == 200, answer.status
    for _ in range(len(answer.retries.history) + 1):
        count()


def urllib3_reset():
    import urllib3

    made = urllib3.connectionpool.HTTPConnectionPool._make_request

    def counted(self, *args, **kwargs):
        count()
        return made(self, *args, **kwargs)

    urllib3.connectionpool.HTTPConnectionPool._make_request = counted
    retry = urllib3.Retry(total=5, backoff_factor=0.2)
    assert urllib3.PoolManager().request("GET", "https://api.example.com/status/200", retries=retry).status == 200


def requests_retry():
    import requests
    import urllib3

    session = requests.Session()
    retry = urllib3.Retry(total=5, status_forcelist=[503], backoff_factor=0.2, allowed_methods=None)
    session.mount("https://", requests.adapters.HTTPAdapter(max_retries=retry))
    answer = session.post("https://api.example.com/status/200", data=b"x" * 1000)
    assert answer.status_code == 200, answer
    for _ in range(len(answer.raw.retries.history) + 1):
        count()


def tenacity_httpx():
    import httpx
    import tenacity

    client = httpx.Client(http2=True)

    @tenacity.retry(wait=tenacity.wait_exponential(multiplier=0.2), stop=tenacity.stop_after_attempt(5))
    def ask():
        count()
        client.post("https://api.example.com/status/200", json={"a": 1}).raise_for_status()

    ask()


def openai_chat():
    import openai

    client = openai.OpenAI(api_key="k")
    client._client.event_hooks = {"request": [count]}
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])


def anthropic_messages():
    import anthropic

    client = anthropic.Anthropic(api_key="k")
    client._client.event_hooks = {"request": [count]}
    client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}])


def stripe_customer():
    import stripe

    count_requests()
    client = stripe.StripeClient("sk_test_x", max_network_retries=2, http_client=stripe.RequestsClient())
    client.v1.customers.create({"name": "x"})


def google_storage():
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    count_requests()
    client = storage.Client(project="p", credentials=AnonymousCredentials())
    client.bucket("b").blob("o").reload()


def azure_blob():
    from azure.storage.blob import BlobClient, LinearRetry

    blob = BlobClient("https://acct.blob.core.windows.net", "c", "b", retry_policy=LinearRetry(backoff=1, retry_total=4, random_jitter_range=0))
    blob.get_blob_properties(raw_response_hook=count)


def azure_core():
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import RequestIdPolicy, RetryPolicy
    from azure.core.rest import HttpRequest

    count_requests()
    client = PipelineClient("https://management.azure.com", policies=[RequestIdPolicy(), RetryPolicy(retry_backoff_factor=0.2)])
    client.send_request(HttpRequest("GET", "https://management.azure.com/x")).raise_for_status()


def grpc_unary():
    import grpc

    config = {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
    channel = grpc.secure_channel(
        "api.example.com:443", grpc.ssl_channel_credentials(), [("grpc.service_config", json.dumps(config))]
    )
    answer, call = channel.unary_unary("/test.Service/Call").with_call(b"", timeout=20)
    # The server tells how often it was asked.
    for _ in range(int(dict(call.trailing_metadata())["asked"])):
        count()


def grpc_late():
    import grpc

    channel = grpc.secure_channel("api.example.com:443", grpc.ssl_channel_credentials())
    try:
        channel.unary_unary("/test.Service/Late")(b"", timeout=20)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        count()


def boto3_list():
    """With the retry mode that is the second argument."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        region_name="eu-west-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"mode": sys.argv[2]}, read_timeout=1),
    )
    client.meta.events.register_first("before-send.s3", count)
    answer = client.list_buckets()
    assert answer["ResponseMetadata"]["RetryAttempts"] == sent - 1, answer


globals()[sys.argv[1]]()
print(json.dumps({"sent": sent}))
