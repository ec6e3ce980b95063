"""Starts processes that connect, say a TLS hello and end at once.

    leave.py ADDRESS NAME COUNT     COUNT times, whenever a line comes on stdin:
                                    forks one of them, and starts one as a
                                    program; prints who they were, as JSON
    leave.py ADDRESS NAME WORD...   is one of them
"""
import json, os, socket, ssl, subprocess, sys

address, name, *words = sys.argv[1:]


def hello():
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(received, sent, server_hostname=name)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()


def leave(said):
    with socket.create_connection((address, 443)) as connection:
        connection.sendall(said)


def command():
    with open("/proc/self/cmdline") as line:
        return line.read().rstrip("\0").replace("\0", " ")


said = hello()
if words[0].isdigit():
    print("ready", flush=True)
    for number in range(int(words[0])):
        sys.stdin.readline()
        told = []
        child = os.fork()
        if child == 0:
            leave(said)
            os._exit(0)
        os.waitpid(child, 0)
        told.append({"pid": child, "command": command()})
        anew = [sys.executable, "-I", "-S", *sys.argv[:3], "started", f"as number {number}"]
        program = subprocess.Popen(anew)
        assert program.wait() == 0
        told.append({"pid": program.pid, "command": " ".join(anew)})
        print(f"told {number} " + json.dumps(told), flush=True)
    sys.stdin.readline()
else:
    leave(said)
