"""curl with a body that fits nowhere, made or digested on the way: flood.py down|up FLAG URL [BYTES].

Prints one JSON object with the body's length and digest, then waits for its stdin to end.
"""
import hashlib
import json
import subprocess
import sys

way, flag, url = sys.argv[1:4]
digest, length = hashlib.sha256(), 0
command = ["curl", "-sS", "--fail", flag]
answer = b""
if way == "down":
    curl = subprocess.Popen([*command, url], stdout=subprocess.PIPE)
    buffer = bytearray(1 << 20)
    while read := curl.stdout.readinto(buffer):
        digest.update(memoryview(buffer)[:read])
        length += read
else:
    # Of prime length, so that a lost or doubled piece of any round size shows.
    state, block = 1, bytearray()
    while len(block) < 65521:
        state = (state * 1103515245 + 12345) & 0xFFFFFFFF
        block.append(state >> 16 & 0xFF)
    block = bytes(block) * 16
    curl = subprocess.Popen([*command, "-T", "-", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    left = int(sys.argv[4])
    while left:
        piece = memoryview(block)[: min(left, len(block))]
        digest.update(piece)
        curl.stdin.write(piece)
        left -= len(piece)
        length += len(piece)
    curl.stdin.close()
    answer = curl.stdout.read()
code = curl.wait()
print(json.dumps({"code": code, "length": length, "sha256": digest.hexdigest(), "answer": answer.decode()}), flush=True)
sys.stdin.read()
