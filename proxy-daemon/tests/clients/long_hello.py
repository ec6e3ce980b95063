"""A TLS connection whose hello is long and comes in pieces: long_hello.py HOST SIZE.

The hello offers hundreds of protocols, so that it takes more than 16 KiB and two records; it is sent SIZE bytes at a
time, each piece in a segment of its own. Prints one JSON object: the hello's length, the protocol chosen, the body of
the answer.
"""
import json
import socket
import ssl
import sys

host, size = sys.argv[1], int(sys.argv[2])
sock = socket.create_connection((host, 443), timeout=60)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
context = ssl.create_default_context()
context.set_alpn_protocols(["http/1.1"] + [f"protocol-{at:012}" for at in range(760)])
came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(came, goes, server_hostname=host)


def step(what):
    while True:
        try:
            return what()
        except ssl.SSLWantReadError:
            sock.sendall(goes.read())
            piece = sock.recv(65536)
            if not piece:
                came.write_eof()
            came.write(piece)


try:
    tls.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = goes.read()
for at in range(0, len(hello), size):
    sock.sendall(hello[at : at + size])
step(tls.do_handshake)
sock.sendall(goes.read())
tls.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
answer = b""
while not answer.endswith(b"yes"):
    piece = step(lambda: tls.read(65536))
    if not piece:
        break
    answer += piece
print(json.dumps({"hello": len(hello), "alpn": tls.selected_alpn_protocol(), "answer": answer[-3:].decode()}))
