"""boto3 answered by presets: one call per row, as botocore's own hooks saw it.

Argument: a JSON plan {"mode", "rows": [[preset, service, operation, arguments, code]]}.
Each request names its row's preset in `x-preset`, for a rule to go by. Prints
one JSON array: per row the service, the attempts that the hooks
counted and that botocore reports, the error's code, its class, the class that
the service's model has for the expected code, and the statuses seen. No retry
is slept for.
"""
import json
import sys
import threading
import time

import boto3
import botocore.endpoint
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
import botocore.parsers

plan = json.loads(sys.argv[1])


class Clock:
    """time as botocore.endpoint sees it: nothing waits."""

    def __getattr__(self, name):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds):
        pass


botocore.endpoint.time = Clock()
session = botocore.session.get_session()
session.set_credentials("AKIDEXAMPLE", "secret")
boto = boto3.Session(botocore_session=session, region_name="eu-west-1")


class Row:
    """One call by a client of its own: quotas and rate limiters are per client."""

    def __init__(self, preset, service, operation, arguments, code):
        self.preset, self.operation, self.arguments, self.code = preset, operation, arguments, code
        extra = {"s3": {"addressing_style": "path"}} if service == "s3" else {}
        self.client = boto.client(service, config=Config(retries={"mode": plan["mode"]}, **extra))
        self.attempts = []
        self.told = {"preset": preset, "reported": None}
        self.client.meta.events.register("before-send", self.before_send)
        self.client.meta.events.register_first("needs-retry", self.needs_retry)

    def before_send(self, request, **_):
        request.headers["x-preset"] = f"_{self.preset}_"

    def needs_retry(self, response, caught_exception, attempts, operation, **_):
        outcome = response[0].status_code if response is not None else type(caught_exception).__name__
        self.attempts.append(outcome)
        self.told |= {"service": operation.service_model.signing_name, "number": attempts}

    def run(self):
        try:
            getattr(self.client, self.operation)(**self.arguments)
            self.told |= {"code": None, "class": None}
        except ClientError as error:
            metadata = error.response["ResponseMetadata"]
            self.told |= {
                "code": error.response.get("Error", {}).get("Code", ""),
                "class": type(error).__name__,
                "reported": metadata.get("RetryAttempts", 0) + 1,
            }
        except (BotoCoreError, botocore.parsers.ResponseParserError) as error:
            self.told |= {"code": type(error).__name__, "class": type(error).__name__}
        self.told["attempts"] = self.attempts
        self.told["modelled"] = self.client.exceptions.from_code(self.code).__name__


rows = [Row(*row) for row in plan["rows"]]
# At once: the adaptive mode's rate limiter waits by a lock, which has no clock to replace.
workers = [threading.Thread(target=row.run) for row in rows]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
json.dump([row.told for row in rows], sys.stdout)
