"""Connects once per line on stdin and tells who answered: loop.py HOST [PORT].

Prints, per line read, one JSON object: the certificate's issuer ("none" on failure), the first bytes of the
answer, the pid. Verification is off, so that it can tell a direct connection from an intercepted one. A line
"fork" makes the next connection in a child.
"""
import json
import os
import socket
import ssl
import subprocess
import sys

host, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 443
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE


def issuer(der):
    """The issuer's common name, by the openssl program (the ssl module does not parse unverified certificates)."""
    answer = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-issuer", "-nameopt", "multiline"], input=der, capture_output=True
    )
    return " ".join(answer.stdout.decode().split())


def once():
    row = {"pid": os.getpid(), "issuer": "none", "answer": "", "error": None}
    try:
        with context.wrap_socket(socket.create_connection((host, port), timeout=10), server_hostname=host) as stream:
            row["issuer"] = issuer(stream.getpeercert(binary_form=True))
            stream.sendall(f"GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            row["answer"] = stream.recv(100).decode("latin1").split("\r\n")[0]
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(row), flush=True)


print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    if line.strip() == "fork":
        child = os.fork()
        if child == 0:
            once()
            os._exit(0)
        os.waitpid(child, 0)
    else:
        once()
