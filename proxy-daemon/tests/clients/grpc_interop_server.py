"""A gRPC server for every kind of call, which keeps what it saw: grpc_interop_server.py ADDRESS CERT KEY.

/t/Unary (the request's first 8 bytes ask for that many), /t/Collect (client streaming), /t/Spread (server streaming: one
answer per decimal number in the request), /t/Echo (bidirectional), /t/Sleep and /t/Wait (until they are called off),
/t/Metadata, /t/Fail, /t/Begun (waits until the call of that name has come), /t/Seen (until it has ended; tells how),
/t/Log (what was seen so far).
"""
import hashlib
import json
import sys
import threading
from concurrent import futures

import grpc

address, certificate, key = sys.argv[1:]
seen, begun, ended = [], set(), {}
changed = threading.Condition()


def watch(method, context):
    """Notes how the call ends, and the deadline that it came with."""
    name = dict(context.invocation_metadata()).get("x-name", "")
    left = context.time_remaining()
    call = {"method": method, "name": name, "got": 0, "sha256": "", "deadline": left is not None and left < 600, "done": False}
    digest = hashlib.sha256()

    def got(message):
        digest.update(len(message).to_bytes(8, "big") + message)
        call["got"] += 1
        call["sha256"] = digest.hexdigest()

    def over():
        with changed:
            seen.append(call)
            ended[name] = "done" if call["done"] else "called off"
            changed.notify_all()

    context.add_callback(over)
    with changed:
        begun.add(name)
        changed.notify_all()
    return call, got


def unary(request, context):
    call, got = watch("Unary", context)
    got(request)
    call["done"] = True
    return b"u" * int.from_bytes(request[:8], "big")


def collect(requests, context):
    call, got = watch("Collect", context)
    total = 0
    for request in requests:
        got(request)
        total += len(request)
    call["done"] = True
    return str(total).encode()


def spread(request, context):
    call, got = watch("Spread", context)
    got(request)
    for size in request.split():
        yield b"s" * int(size)
    call["done"] = True


def echo(requests, context):
    call, got = watch("Echo", context)
    for request in requests:
        got(request)
        yield request
    call["done"] = True


def sleep(request, context):
    watch("Sleep", context)[1](request)
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(60)
    return b""


def wait(requests, context):
    _, got = watch("Wait", context)
    for request in requests:
        got(request)
        yield b"first"


def metadata(request, context):
    call, got = watch("Metadata", context)
    got(request)
    sent = [pair for pair in context.invocation_metadata() if pair.key.startswith("x-t-")]
    context.send_initial_metadata([(f"i-{pair.key}", pair.value) for pair in sent])
    context.set_trailing_metadata([(f"t-{pair.key}", pair.value) for pair in sent])
    call["done"] = True
    return request


def fail(request, context):
    call, got = watch("Fail", context)
    got(request)
    call["done"] = True
    context.abort(grpc.StatusCode(next(code.value for code in grpc.StatusCode if code.name == request.decode())), "t\te\r\n☺😈 ")


def come(request, _):
    with changed:
        return b"come" if changed.wait_for(lambda: request.decode() in begun, 20) else b"never"


def how(request, _):
    name = request.decode()
    with changed:
        changed.wait_for(lambda: name in ended, 20)
    return ended.get(name, "never").encode()


def log(_, __):
    return json.dumps(sorted(seen, key=lambda call: call["name"])).encode()


KINDS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Spread": grpc.unary_stream_rpc_method_handler(spread),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    "Wait": grpc.stream_stream_rpc_method_handler(wait),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Begun": grpc.unary_unary_rpc_method_handler(come),
    "Seen": grpc.unary_unary_rpc_method_handler(how),
    "Log": grpc.unary_unary_rpc_method_handler(log),
}


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return KINDS.get(details.method.rpartition("/")[2])


def read(path):
    with open(path, "rb") as file:
        return file.read()


server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((Handler(),))
server.add_secure_port(address, grpc.ssl_server_credentials([(read(key), read(certificate))]))
server.start()
print("ready", flush=True)
server.wait_for_termination()
