"""A client program for the tests: runs the snippets that arrive on stdin, one
JSON string a line, and answers with their `result` (or error) the same way.
Names live on from snippet to snippet."""
import errno, json, os, signal, socket, struct, subprocess, sys, threading, time, traceback

TIMEOUT = 10


def tcp(family=socket.AF_INET, protocol=0):
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    made.settimeout(TIMEOUT)
    return made


def connect(host, port=443, family=None, protocol=0):
    made = tcp(family or (socket.AF_INET6 if ":" in host else socket.AF_INET), protocol)
    made.connect((host, port))
    return made


def peer(sock):
    return list(sock.getpeername()[:2])


def start_ticks(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[19])


scope = dict(globals())
for line in sys.stdin:
    scope["result"] = None
    try:
        exec(json.loads(line), scope)
        reply = {"ok": scope["result"]}
    except OSError as error:
        reply = {"errno": error.errno or errno.ETIMEDOUT}
    except BaseException:
        reply = {"error": traceback.format_exc()}
    print(json.dumps(reply), flush=True)
