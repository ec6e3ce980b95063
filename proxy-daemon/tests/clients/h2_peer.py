"""A server of HTTP/2 that tells what it was asked, field by field: h2_peer.py ADDRESS CERT KEY.

/mirror answers with the request's `x-` fields; /interim with 100, 102, 103 and 199 before its 200. Prints one JSON
object for each request: its fields in their order, its trailers, and the length of its body.
"""
import json
import socket
import ssl
import struct
import sys
import threading

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4

address, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.set_alpn_protocols(["h2"])
host, port = address.rsplit(":", 1)
listener = socket.create_server((host, int(port)))


def serve(stream):
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = context.wrap_socket(stream, server_side=True)
    encoder, decoder = hpack.Encoder(), hpack.Decoder(1 << 24)
    incoming = stream.makefile("rb")
    requests, block = {}, b""

    def send(kind, flags, stream_id, payload=b""):
        stream.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload)

    def head(stream_id, fields, end=False):
        encoded = encoder.encode(fields)
        pieces = [encoded[at : at + 16384] for at in range(0, len(encoded), 16384)]
        for at, piece in enumerate(pieces):
            flags = (END_STREAM if end and at == 0 else 0) | (END_HEADERS if at == len(pieces) - 1 else 0)
            send(CONTINUATION if at else HEADERS, flags, stream_id, piece)

    def answer(stream_id):
        request = requests[stream_id]
        print(json.dumps(request), flush=True)
        fields = request["fields"]
        path = dict(fields)[":path"]
        if path == "/interim":
            for status in ("100", "102", "103", "199"):
                head(stream_id, [(":status", status), ("x-of", status), ("link", "</a.css>; rel=preload")])
        mirrored = [(name, value) for name, value in fields if name.startswith("x-")] if path == "/mirror" else []
        head(stream_id, [(":status", "200"), *mirrored, ("x-last", "1")])
        send(DATA, 0, stream_id, b"answered")
        head(stream_id, [("x-trailer", "1"), ("x-trailer", "2")], end=True)

    assert incoming.read(24).startswith(b"PRI * HTTP/2.0")
    send(SETTINGS, 0, 0)
    while len(start := incoming.read(9)) == 9:
        payload = incoming.read(int.from_bytes(start[:3], "big"))
        kind, flags, stream_id = struct.unpack(">BBI", start[3:])
        if kind in (SETTINGS, PING) and not flags & ACK:
            send(kind, ACK, 0, payload if kind == PING else b"")
        elif kind in (HEADERS, CONTINUATION):
            block += payload
            ends = flags & END_STREAM if kind == HEADERS else ends
            if flags & END_HEADERS:
                fields = decoder.decode(block)
                block = b""
                if stream_id in requests:
                    requests[stream_id]["trailers"] = fields
                else:
                    requests[stream_id] = {"fields": fields, "trailers": [], "length": 0}
        elif kind == DATA:
            requests[stream_id]["length"] += len(payload)
            ends = flags & END_STREAM
        else:
            continue
        if kind in (HEADERS, CONTINUATION, DATA) and not block and ends:
            answer(stream_id)


print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
