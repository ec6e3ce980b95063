"""A boto3 program that tells, from botocore's own hooks, what it did.

Argument: a JSON plan. Prints one JSON object: attempts as [service, operation,
call, number, status or error name], the sleeps before retries, the gaps
between the ends of two attempts of a call, and what each call came to.
"""
import json
import sys
import threading
import time

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
import botocore.endpoint

plan = json.loads(sys.argv[1])
scale = plan.get("sleep_scale", 1.0)
lock = threading.Lock()
attempts, sleeps, spans, calls, sent = [], [], [], [], []
last_answer = {}


class Clock:
    """time as botocore.endpoint sees it: sleeps are recorded (and, for quick tests, shortened)."""

    def __getattr__(self, name):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds):
        before = time.monotonic()
        time.sleep(seconds * scale)
        with lock:
            sleeps.append((time.monotonic() - before) * 1000)


botocore.endpoint.time = Clock()


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def attempt_of(request):
    fields = dict(part.strip().split("=", 1) for part in text(request.headers["amz-sdk-request"]).split(";"))
    return text(request.headers["amz-sdk-invocation-id"]), int(fields["attempt"])


def before_send(request, event_name, **_):
    with lock:
        sent.append(list(attempt_of(request)))


def needs_retry(response, caught_exception, attempts: int, operation, request_dict, **_):
    number = attempts
    now = time.monotonic()
    context = request_dict["context"]["retries"]
    call = context["invocation-id"]
    outcome = response[0].status_code if response is not None else type(caught_exception).__name__
    with lock:
        if (call, number - 1) in last_answer:
            spans.append((now - last_answer[call, number - 1]) * 1000)
        last_answer[call, number] = now
        globals()["attempts"].append([operation.service_model.signing_name, operation.name, call, number, outcome])


session = botocore.session.get_session()
emitter = session.get_component("event_emitter")
emitter.register("before-send", before_send)
emitter.register_first("needs-retry", needs_retry)
session.set_credentials("AKIDEXAMPLE", "secret")
boto = boto3.Session(botocore_session=session, region_name="eu-west-1")


def client(service):
    options = {"retries": {k: v for k, v in plan.get("retries", {}).items()}} if plan.get("retries") else {}
    extra = {"s3": {"addressing_style": plan.get("addressing", "path")}} if service == "s3" else {}
    return boto.client(service, config=Config(max_pool_connections=32, **options, **extra))


def run(made, service, operation, arguments):
    method = getattr(made[service], operation)
    row = {"service": service, "operation": operation}
    try:
        answer = method(**arguments)
        if "Body" in answer:
            row["body"] = answer["Body"].read().decode("latin1")[:100]
        row["status"] = answer["ResponseMetadata"]["HTTPStatusCode"]
        row["retries"] = answer["ResponseMetadata"]["RetryAttempts"]
    except ClientError as error:
        row["error"] = error.response.get("Error", {}).get("Code", "")
        row["status"] = error.response["ResponseMetadata"]["HTTPStatusCode"]
        row["retries"] = error.response["ResponseMetadata"].get("RetryAttempts", 0)
    except BotoCoreError as error:
        row["error"] = type(error).__name__
    with lock:
        calls.append(row)


SERVICES = {call[0] for call in plan["calls"]}
shared = {service: client(service) for service in SERVICES}

threads = plan.get("threads", 0)
if threads:
    barrier = threading.Barrier(threads)
    own = [{s: client(s) for s in SERVICES} if plan.get("client_per_thread") else shared for _ in range(threads)]

    def work(made):
        barrier.wait()
        for call in plan["calls"]:
            run(made, *call)

    workers = [threading.Thread(target=work, args=(made,)) for made in own]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
else:
    for call in plan["calls"]:
        run(shared, *call)

json.dump({"attempts": attempts, "sent": sent, "sleeps": sleeps, "spans": spans, "calls": calls}, sys.stdout)
