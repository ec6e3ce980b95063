"""A WebSocket server that echoes frames as they are cut: websocket_server.py ADDRESS CERT KEY.

Prints one JSON object for each connection that has ended: the digest of every byte that it received, how many frames of
which kind that were, and how it was closed. A text `close CODE REASON` has it close the connection so, and `ping me` send a ping.
"""
import collections
import hashlib
import json
import socket
import ssl
import sys
import threading

from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.server import ServerProtocol

address, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
host, port = address.rsplit(":", 1)
listener = socket.create_server((host, int(port)))


def serve(stream):
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = context.wrap_socket(stream, server_side=True)
    protocol = ServerProtocol(extensions=[ServerPerMessageDeflateFactory()], max_size=None)
    digest, length, kinds = hashlib.sha256(), 0, collections.Counter()
    opcode = None

    def send_out():
        for data in protocol.data_to_send():
            if data:
                stream.sendall(data)
            else:
                # The client's goodbye is not waited for here.
                stream.settimeout(0)
                try:
                    stream.unwrap()
                except OSError:
                    stream.settimeout(20)

    def more():
        try:
            return stream.recv(65536)
        except OSError:
            return b""

    while data := more():
        digest.update(data)
        length += len(data)
        protocol.receive_data(data)
        for event in protocol.events_received():
            if not hasattr(event, "opcode"):
                protocol.send_response(protocol.accept(event))
                continue
            kinds[event.opcode.name + ("" if event.fin else " begun")] += 1
            content = bytes(event.data)
            if event.opcode is Opcode.TEXT and content.startswith(b"close "):
                _, code, reason = content.decode().split(" ", 2)
                protocol.send_close(int(code), reason) if int(code) else protocol.send_close()
            elif event.opcode is Opcode.TEXT:
                if content.startswith(b"ping me"):
                    protocol.send_ping(content)
                protocol.send_text(content, event.fin)
            elif event.opcode is Opcode.BINARY:
                protocol.send_binary(content, event.fin)
            elif event.opcode is Opcode.CONT:
                protocol.send_continuation(content, event.fin)
        send_out()
    closed = protocol.close_rcvd and [protocol.close_rcvd.code, protocol.close_rcvd.reason]
    stream.close()
    print(json.dumps({"bytes": length, "sha256": digest.hexdigest(), "frames": kinds, "closed": closed}), flush=True)


print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
