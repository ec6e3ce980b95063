"""moto over TLS at ADDRESS PORT with CERT KEY; each request's SDK headers go to LOG.

Prints "ready" once it listens; ends when stdin does, so it never outlives its test.
"""
import json
import os
import ssl
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

address, port, cert, key, log_path = sys.argv[1:]
os.environ["MOTO_PORT"] = port
app = DomainDispatcherApplication(create_backend_app)
log = open(log_path, "a", buffering=1)
lock = threading.Lock()


def logged(environ, start_response):
    row = {
        "method": environ["REQUEST_METHOD"],
        "path": environ.get("PATH_INFO"),
        "host": environ.get("HTTP_HOST"),
        "invocation": environ.get("HTTP_AMZ_SDK_INVOCATION_ID", ""),
        "request": environ.get("HTTP_AMZ_SDK_REQUEST", ""),
    }
    with lock:
        log.write(json.dumps(row) + "\n")
    return app(environ, start_response)


class Quiet(MotoRequestHandler):
    def log(self, *args):
        pass


# One daemon thread per connection; a late handshake must not hold up others.
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.set_alpn_protocols(["http/1.1"])
server = make_server(address, int(port), logged, threaded=True, request_handler=Quiet)
server.ssl_context = context
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()

# What the tests take for granted: a bucket with an object, a table with an item.
import boto3  # noqa: E402
import urllib3  # noqa: E402

urllib3.disable_warnings()
common = {
    "region_name": "eu-west-1",
    "endpoint_url": f"https://{address}:{port}",
    "verify": False,
    "aws_access_key_id": "AKIDEXAMPLE",
    "aws_secret_access_key": "secret",
}
# With its default checksum: a GetObject then carries `x-amz-checksum-crc32`, which a rewritten response must not.
s3 = boto3.client("s3", **common)
s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
s3.put_object(Bucket="bucket", Key="object", Body=b"what was put there first")
boto3.client("dynamodb", **common).create_table(
    TableName="table",
    KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    BillingMode="PAY_PER_REQUEST",
)
boto3.client("dynamodb", **common).put_item(TableName="table", Item={"id": {"S": "first"}, "n": {"N": "1"}})
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
