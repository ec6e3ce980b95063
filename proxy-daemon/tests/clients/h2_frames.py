"""An HTTP/2 client by the frame, which does what it is told and no more: h2_frames.py HOST, steps as JSON on stdin.

Steps: {"first": [[NAME, VALUE], ..]} (the first settings), {"unread": [ID, ..]} (their windows are never opened again),
{"open": ID, "fields": [[NAME, VALUE], ..], "end": BOOL, "on": HEX} (with a priority; a second time its trailers),
{"upload": [ID, N]} (N bytes as the windows allow, until the stream is over), {"finish": ID} (an empty last frame),
{"say": [KIND, FLAGS, ID, HEX]} (any frame), and what is waited for: {"got": [ID, N]} (N bytes), {"ended": ID},
{"reset": ID}, {"settled": N} (N SETTINGS), {"pong": HEX}, {"pinged": HEX}, {"goodbye": true}, {"eof": true}.
Prints one JSON object: the streams, the settings, the goodbyes with their reasons, what came in which order, and how
it ended.

No library between: those refuse a connection after its GOAWAY, and requests that are out of the ordinary.
"""
import json
import select
import socket
import ssl
import struct
import sys

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
CONTINUATION = 9
END_STREAM, ACK, END_HEADERS, PRIORITIZED = 1, 1, 4, 32

host = sys.argv[1]
steps = json.load(sys.stdin)
encoder, decoder = hpack.Encoder(), hpack.Decoder(1 << 24)
streams, goodbyes, reasons, unread = {}, [], [], set()
settings, events, block = [], [], b""
window = {0: 65535}
initial, buffered, over = 65535, b"", False


def send(kind, flags, stream_id, payload=b""):
    connection.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload)


def taken(kind, flags, stream_id, payload):
    global initial, block
    stream = streams.get(str(stream_id))
    if kind == SETTINGS and not flags & ACK:
        settings.append([struct.unpack(">HI", payload[at : at + 6]) for at in range(0, len(payload), 6)])
        events.append("settings")
        for name, value in settings[-1]:
            if name == 4:
                for other in window.keys() - {0}:
                    window[other] += value - initial
                initial = value
        send(SETTINGS, ACK, 0)
    elif kind == PING:
        events.append(("pong " if flags & ACK else "ping ") + payload.hex())
        if not flags & ACK:
            send(PING, ACK, 0, payload)
    elif kind == WINDOW_UPDATE:
        window[stream_id] = window.get(stream_id, initial) + struct.unpack(">I", payload)[0]
    elif kind == GOAWAY:
        goodbyes.append(struct.unpack(">II", payload[:8])[1])
        reasons.append(payload[8:].decode("latin1"))
    elif kind in (HEADERS, CONTINUATION):
        block += payload
        if flags & END_HEADERS:
            stream["fields"] += decoder.decode(block)
            block = b""
            events.append(f"head {stream_id}")
    elif kind == DATA:
        stream["length"] += len(payload)
        stream["start"] = (stream["start"] + payload.decode("latin1"))[:100]
        # The connection's own window is never used up.
        if payload and not flags & END_STREAM and stream_id not in unread:
            send(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", len(payload)))
    elif kind == RST_STREAM:
        stream["reset"] = struct.unpack(">I", payload)[0]
    if kind in (DATA, HEADERS) and flags & END_STREAM:
        stream["ended"] = True


def more():
    """Takes what comes next."""
    global buffered, over
    piece = connection.recv(65536)
    buffered += piece
    over = over or not piece
    while len(buffered) >= 9:
        length = int.from_bytes(buffered[:3], "big")
        if len(buffered) < 9 + length:
            break
        kind, flags, stream_id = struct.unpack(">BBI", buffered[3:9])
        payload, buffered = buffered[9 : 9 + length], buffered[9 + length :]
        taken(kind, flags, stream_id, payload)


def until(done, what):
    while not done():
        if over:
            raise EOFError(f"ended before {what}")
        more()


def readable():
    return connection.pending() or select.select([connection], [], [], 0)[0]


def upload(stream_id, length):
    stream = streams[str(stream_id)]
    while length and not stream["ended"] and stream["reset"] is None:
        size = min(length, 16384, window[0], window[stream_id])
        if size > 0:
            send(DATA, 0, stream_id, b"u" * size)
            window[0] -= size
            window[stream_id] -= size
            length -= size
        if size <= 0 or readable():
            more()


ended = "done"
try:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    connection = context.wrap_socket(socket.create_connection((host, 443), timeout=20), server_hostname=host)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    first = next((step["first"] for step in steps if "first" in step), [])
    send(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in first))
    # Room for many streams on the connection, while each has its ordinary window.
    send(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 28))
    for step in steps:
        (name,) = step.keys() - {"fields", "end", "on"}
        value = step[name]
        if name == "unread":
            unread.update(value)
        elif name == "open":
            streams.setdefault(str(value), {"fields": [], "length": 0, "start": "", "ended": False, "reset": None})
            window.setdefault(value, initial)
            fields = encoder.encode([tuple(field) for field in step["fields"]])
            pieces = [fields[at : at + 16384] for at in range(0, len(fields), 16384)]
            for at, piece in enumerate(pieces):
                flags = END_STREAM if at == 0 and step.get("end", True) else 0
                flags |= END_HEADERS if at == len(pieces) - 1 else 0
                if "on" in step:
                    flags, piece = flags | PRIORITIZED, bytes.fromhex(step["on"]) + piece
                send(CONTINUATION if at else HEADERS, flags, value, piece)
        elif name == "upload":
            upload(*value)
        elif name == "finish":
            send(DATA, END_STREAM, value)
        elif name == "got":
            stream_id, length = value
            until(lambda: streams[str(stream_id)]["length"] >= length, f"{length} bytes of stream {stream_id}")
        elif name == "ended":
            until(lambda: streams[str(value)]["ended"], f"the end of stream {value}")
        elif name == "reset":
            until(lambda: streams[str(value)]["reset"] is not None, f"the reset of stream {value}")
        elif name == "first":
            pass
        elif name == "say":
            kind, flags, stream_id, payload = value
            send(kind, flags, stream_id, bytes.fromhex(payload))
        elif name == "settled":
            until(lambda: len(settings) >= value, f"{value} SETTINGS")
        elif name in ("pong", "pinged"):
            event = f"{name[:4]} {value}"
            until(lambda: event in events, event)
        elif name == "goodbye":
            until(lambda: goodbyes, "a goodbye")
        elif name == "eof":
            while not over:
                more()
        else:
            raise ValueError(name)
except Exception as error:
    ended = f"{type(error).__name__}: {error}"
got = {"streams": streams, "settings": settings, "goodbyes": goodbyes, "reasons": reasons, "events": events, "ended": ended}
print(json.dumps(got))
