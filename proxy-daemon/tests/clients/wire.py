"""A client that sends exact bytes: wire.py HOST PORT, steps as JSON on stdin.

Steps: {"send": TEXT} {"until": MARK} {"read": N} {"eof": true} {"alpn": [..]} {"insecure": true}
{"plain": true} {"shutdown": true} {"mark": TEXT} {"connect": true}. TEXT is Latin-1.
Prints one JSON object: what each reading step got, in order, and how it ended.
"""
import json
import socket
import ssl
import sys

host, port = sys.argv[1], int(sys.argv[2])
steps = json.load(sys.stdin)
context = ssl.create_default_context()
got, buffered, stream, ended = [], b"", None, None
plain = any("plain" in step for step in steps)
for step in steps:
    if "alpn" in step:
        context.set_alpn_protocols(step["alpn"])
    if "insecure" in step:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE


def connect():
    sock = socket.create_connection((host, port), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock if plain else context.wrap_socket(sock, server_hostname=host)


def more():
    global buffered
    piece = stream.recv(65536)
    buffered += piece
    return piece != b""


try:
    stream = connect()
    for step in steps:
        if "connect" in step:
            stream.close()
            stream, buffered = connect(), b""
        elif "send" in step:
            stream.sendall(step["send"].encode("latin1"))
        elif "until" in step:
            mark = step["until"].encode("latin1")
            while mark not in buffered:
                if not more():
                    raise EOFError(f"ended before {mark!r}; had {buffered!r}")
            at = buffered.index(mark) + len(mark)
            got.append(buffered[:at].decode("latin1"))
            buffered = buffered[at:]
        elif "read" in step:
            while len(buffered) < step["read"]:
                if not more():
                    raise EOFError(f"ended before {step['read']} bytes; had {len(buffered)}")
            got.append(buffered[: step["read"]].decode("latin1"))
            buffered = buffered[step["read"] :]
        elif "eof" in step:
            while more():
                pass
            got.append(buffered.decode("latin1"))
            buffered = b""
        elif "shutdown" in step:
            stream.shutdown(socket.SHUT_WR)
        elif "mark" in step:
            print(step["mark"], file=sys.stderr, flush=True)
    ended = "done"
except Exception as error:
    ended = f"{type(error).__name__}: {error}"
    got.append(buffered.decode("latin1"))
peer = stream.getpeername() if ended == "done" else None
print(json.dumps({"got": got, "ended": ended, "peer": peer}))
