"""Every operation of every AWS service, as botocore sends it, one JSON line
each: [service, signing name, endpoint prefix, operation, method, url, headers,
start of the body]. Nothing is sent: the request is taken where it would be.

Inputs are made of the shapes: what is required, in its least form. What
cannot be made so is counted on standard error.
"""
import datetime
import json
import sys

import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.config import Config

session = botocore.session.get_session()
session.set_credentials("AKIDEXAMPLE", "secret")
ARN = "arn:aws:service:us-east-1:123456789012:stream/x"
signing = ["service"]


def sample(shape, name="", depth=0):
    kind = shape.type_name
    if kind == "structure":
        if depth > 12:
            return {}
        if getattr(shape, "is_tagged_union", False):
            first = next(iter(shape.members))
            return {first: sample(shape.members[first], first, depth + 1)}
        return {key: sample(shape.members[key], key, depth + 1) for key in shape.required_members}
    if kind == "list":
        count = max(1, shape.metadata.get("min", 1))
        return [sample(shape.member, name, depth + 1) for _ in range(min(count, 50))]
    if kind == "map":
        return {sample(shape.key, name, depth + 1): sample(shape.value, name, depth + 1)}
    if kind in ("integer", "long"):
        return max(1, shape.metadata.get("min", 1))
    if kind in ("float", "double"):
        return float(max(1, shape.metadata.get("min", 1)))
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return datetime.datetime(2026, 1, 1)
    if kind == "blob":
        return b"x" * max(1, shape.metadata.get("min", 1))
    if kind == "string":
        if shape.enum:
            return shape.enum[0]
        lowered = name.lower()
        if lowered in ("accountid", "awsaccountid", "x-amz-account-id"):
            return "123456789012"
        if lowered == "bucket":
            return "bucket"
        if "arn" in lowered:
            return (ARN.replace(":service:", f":{signing[0]}:") + "x" * shape.metadata.get("min", 0))[: max(60, shape.metadata.get("min", 0))]
        return ("x" * max(1, shape.metadata.get("min", 1)))[:256]
    if shape.is_document_type:
        return {}
    return "x"


def text(value):
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def start(body):
    if body is None:
        return ""
    if hasattr(body, "read"):
        body = body.read()
    return text(body)[:8192]


missing = []


def every(service, variants):
    for options in variants:
        taken = []

        def take(request, **_):
            taken.append(request)
            return AWSResponse(request.url, 200, {}, None)

        config = Config(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            **options.get("config", {}),
        )
        more = {key: value for key, value in options.items() if key != "config"}
        region = "us-east-1"
        try:
            client = session.create_client(service, region_name=region, config=config, **more)
        except Exception as error:
            missing.append([service, "*", repr(error)])
            continue
        client.meta.events.register("before-send", take)
        model = client.meta.service_model
        signing[0] = model.signing_name
        for name in model.operation_names:
            operation = model.operation_model(name)
            taken.clear()
            error = None
            try:
                inputs = sample(operation.input_shape) if operation.input_shape else {}
                client._make_api_call(name, inputs)
            except Exception as failure:
                error = failure
            if not taken:
                missing.append([service, name, repr(error)[:200]])
                continue
            request = taken[0]
            headers = {key: text(value) for key, value in request.headers.items()}
            row = [service, model.signing_name, model.endpoint_prefix, name, request.method, request.url, headers]
            print(json.dumps(row + [start(request.body)]))


S3 = [
    {},
    {"config": {"s3": {"addressing_style": "path"}}},
    {"config": {"s3": {"addressing_style": "virtual"}}},
    {"config": {"use_dualstack_endpoint": True}},
    {"config": {"use_fips_endpoint": True}},
    {"config": {"s3": {"use_accelerate_endpoint": True}}},
    {"endpoint_url": "https://minio.example.net:9000"},
    {"endpoint_url": "https://bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com"},
]
DYNAMODB = [{}, {"config": {"use_dualstack_endpoint": True}}, {"endpoint_url": "http://127.0.0.1:8000"}]
# These ask for their endpoint first, unless it is given.
TIMESTREAM = [{"endpoint_url": "https://cell1.timestream.us-east-1.amazonaws.com"}]
VARIANTS = {"s3": S3, "dynamodb": DYNAMODB, "timestream-query": TIMESTREAM, "timestream-write": TIMESTREAM}
for service in session.get_available_services():
    every(service, VARIANTS.get(service, [{}]))
print(f"{len(missing)} could not be made of their shapes", file=sys.stderr)
for row in missing:
    print(json.dumps(row), file=sys.stderr)
