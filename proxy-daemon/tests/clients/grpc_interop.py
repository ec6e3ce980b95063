"""Every kind of gRPC call, after the cases of gRPC's own interoperability tests: grpc_interop.py HOST.

All on one channel, on which a bidirectional call stays open from the first to the last. Prints one JSON object: what
each case found, what the server saw of it, and how many calls were made.
"""
import hashlib
import json
import os
import queue
import sys

import grpc

with open(os.environ["SSL_CERT_FILE"], "rb") as file:
    roots = file.read()
channel = grpc.secure_channel(f"{sys.argv[1]}:443", grpc.ssl_channel_credentials(roots))
found, made = {}, 0


def call(kind, method, request, name, **options):
    global made
    made += 1
    metadata = [("x-name", name), *options.pop("metadata", [])]
    return getattr(channel, kind)(f"/t/{method}")(request, metadata=metadata, timeout=options.pop("timeout", 60), **options)


def seen(name):
    return call("unary_unary", "Seen", name.encode(), f"seen {name}").decode()


class Sending:
    """Requests of a stream, one when told."""

    def __init__(self):
        self.queue = queue.Queue()

    def __iter__(self):
        return iter(self.queue.get, None)


def shape(messages):
    messages = list(messages)
    digest = hashlib.sha256()
    for message in messages:
        digest.update(len(message).to_bytes(8, "big") + message)
    return [len(messages), digest.hexdigest()]


def failure(action):
    try:
        return ["OK", repr(action())]
    except grpc.RpcError as error:
        return [error.code().name, error.details()]


# Open to the end.
long_sending = Sending()
long = call("stream_stream", "Echo", iter(long_sending), "long", timeout=None)
long_sending.queue.put(b"first word")
found["long"] = [next(long).decode()]

found["empty"] = len(call("unary_unary", "Unary", bytes(8), "empty"))
found["large"] = len(call("unary_unary", "Unary", (314159).to_bytes(8, "big") + bytes(271828 - 8), "large"))
# Well above a stream's and a connection's window.
found["huge"] = len(call("unary_unary", "Unary", (4_000_000).to_bytes(8, "big") + bytes(4_000_000), "huge"))
sizes = [27182, 8, 1828, 45904]
found["client streaming"] = call("stream_unary", "Collect", iter([bytes(size) for size in sizes]), "collect").decode()
found["client streaming of nothing"] = call("stream_unary", "Collect", iter([]), "collect nothing").decode()
found["server streaming"] = [len(piece) for piece in call("unary_stream", "Spread", b"31415 9 2653 58979", "spread")]
found["server streaming of nothing"] = [len(piece) for piece in call("unary_stream", "Spread", b"", "spread nothing")]
found["bidirectional, nothing"] = shape(call("stream_stream", "Echo", iter([]), "echo nothing"))

# 1,000 each way, the next one only after the last one's answer; then 1,000 as fast as they go.
sending, answers = Sending(), []
stream = call("stream_stream", "Echo", iter(sending), "ping pong")
for number in range(1000):
    sending.queue.put(str(number).encode() * (number % 50))
    answers.append(next(stream))
sending.queue.put(None)
found["ping pong"] = [shape(answers), list(stream), stream.code().name]
found["at once"] = shape(call("stream_stream", "Echo", (bytes([n % 256]) * (n * 7) for n in range(1000)), "at once"))

found["metadata"] = []
values = [("x-t-text", "one"), ("x-t-text", "two, three"), ("x-t-bytes-bin", bytes(range(256)))]
handler = channel.unary_unary("/t/Metadata")
answer, done = handler.with_call(b"m", metadata=[("x-name", "metadata"), *values], timeout=60)
made += 1
for pairs in (done.initial_metadata(), done.trailing_metadata()):
    pairs = [[pair.key, pair.value] for pair in pairs if "x-t-" in pair.key]
    found["metadata"].append([[key, value.hex() if isinstance(value, bytes) else value] for key, value in pairs])
for code in ("NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DATA_LOSS"):
    found[code] = failure(lambda: call("unary_unary", "Fail", code.encode(), code))
found["unimplemented"] = failure(lambda: call("unary_unary", "Nowhere", b"", "unimplemented"))

found["deadline"] = failure(lambda: call("unary_unary", "Sleep", b"", "deadline", timeout=0.5))[0]
found["deadline, seen"] = seen("deadline")
sending = Sending()
stream = call("stream_stream", "Wait", iter(sending), "cancelled")
sending.queue.put(b"begun")
found["cancelled"] = [next(stream).decode()]
stream.cancel()
found["cancelled"] += [failure(lambda: next(stream))[0], seen("cancelled")]
sending.queue.put(None)
waiting = channel.unary_unary("/t/Sleep").future(b"", metadata=[("x-name", "called off")], timeout=60)
made += 1
found["called off, begun"] = call("unary_unary", "Begun", b"called off", "begun").decode()
waiting.cancel()
found["called off"] = seen("called off")

long_sending.queue.put(b"last word")
long_sending.queue.put(None)
found["long"] += [answer.decode() for answer in long] + [long.code().name]
log = call("unary_unary", "Log", b"", "log")
channel.close()
print(json.dumps({"found": found, "seen": json.loads(log), "made": made}))
