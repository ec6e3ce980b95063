"""Connects as it is told, one command per line on stdin, one JSON object per answer.

tls HOST PORT    a request over TLS, unverified; tells the issuer of the certificate ("none" on failure)
fork HOST PORT   the same by a child
hold HOST PORT   opens a connection and keeps it
say              sends a word over every connection that is kept and tells what came back
fill HOST PORT N  opens N connections, fifty a second, has a word sent back over each, and keeps them
let-go           closes what is kept
udp HOST PORT    sends datagrams and tells the first error, or "none"
device HOST PORT DEVICE   tls over a socket that is bound to a network device
"""
import json
import os
import socket
import ssl
import subprocess
import sys
import time

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
kept = []


def issuer(der):
    command = ["openssl", "x509", "-inform", "DER", "-noout", "-issuer", "-nameopt", "multiline"]
    return " ".join(subprocess.run(command, input=der, capture_output=True).stdout.decode().split())


def opened(host, port, device=None):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    stream = socket.socket(family)
    stream.settimeout(10)
    if device:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    stream.connect((host, int(port)))
    return stream


def tls(host, port, device=None):
    row = {"pid": os.getpid(), "issuer": "none"}
    try:
        plain = opened(host, port, device)
        row["peer"] = plain.getpeername()[0]
        with context.wrap_socket(plain, server_hostname=host) as stream:
            row["issuer"] = issuer(stream.getpeercert(binary_form=True))
            stream.sendall(f"GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            row["answer"] = stream.recv(100).decode("latin1").split("\r\n")[0]
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def fork(host, port):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(tls(host, port)).encode())
        os._exit(0)
    row = json.loads(os.read(reader, 65536))
    os.waitpid(child, 0)
    return row


def hold(host, port):
    kept.append(opened(host, port))
    return {"kept": len(kept)}


def say():
    answers = []
    for stream in kept:
        try:
            stream.sendall(b"word")
            answers.append(stream.recv(100).decode())
        except Exception as error:
            answers.append(type(error).__name__)
    return {"answers": answers}


def fill(host, port, count):
    for _ in range(int(count)):
        stream = opened(host, port)
        stream.sendall(b"word")
        assert stream.recv(100) == b"word"
        kept.append(stream)
        time.sleep(0.02)
    return {"kept": len(kept)}


def let_go():
    while kept:
        kept.pop().close()
    return {}


def udp(host, port):
    sender = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect((host, int(port)))
    sender.settimeout(5)
    try:
        # A refusal by the network arrives behind the datagram.
        sender.send(b"hello")
        return {"error": "none", "answer": sender.recv(100).decode()}
    except OSError as error:
        return {"error": type(error).__name__}


print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, *words = line.split()
    commands = {"tls": tls, "fork": fork, "hold": hold, "say": say, "fill": fill, "let-go": let_go, "udp": udp, "device": tls}
    print(json.dumps({"done": name, **commands[name](*words)}), flush=True)
