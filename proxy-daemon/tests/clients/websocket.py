"""10,000 WebSocket frames of every kind and their echoes, then connections closed in every way: websocket.py HOST.

Keys and masks are the same in every run, and so are the bytes on the wire. Prints one JSON object.
"""
import asyncio
import hashlib
import json
import random
import secrets
import sys

chance, masks = random.Random(1), random.Random(2)
secrets.token_bytes = lambda length=32: masks.randbytes(length)

from websockets.asyncio.client import connect  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402

url = f"wss://{sys.argv[1]}/chat"
sizes = [0, 1, 125, 126, 127, 1000, 65535, 65536]


async def talk(compression):
    """10,000 frames, each of which comes back before the next few go."""
    digest, frames, turn = hashlib.sha256(), 0, 0
    async with connect(url, compression=compression, max_size=None, close_timeout=20, ping_interval=None) as socket:
        while frames < 10_000:
            size = sizes[turn % len(sizes)] if turn % 50 < 10 else turn % 300
            content = chance.randbytes(size)
            text = content.hex()[:size] + "é☺"
            await socket.send(text)
            await socket.send(content)
            await socket.send([content[: size // 3], content[size // 3 : size // 2], content[size // 2 :]])
            await socket.send([text[: size // 2], text[size // 2 :]])
            pong = await socket.ping(content[:125])
            for expected in (text, content, content, text):
                got = await asyncio.wait_for(socket.recv(), 20)
                assert got == expected, (turn, size, len(got), len(expected))
                digest.update(got.encode() if isinstance(got, str) else got)
            await asyncio.wait_for(pong, 20)
            # A ping is answered before what comes after it is handed over.
            await socket.pong(content[:100])
            await socket.send(f"ping me {turn}")
            assert await asyncio.wait_for(socket.recv(), 20) == f"ping me {turn}"
            frames += 11
            turn += 1
        await socket.close(1000, "enough")
    return {"frames": frames, "sha256": digest.hexdigest(), "closed": [socket.close_code, socket.close_reason]}


async def main():
    found = {"plain": await talk(None), "deflated": await talk("deflate"), "closed": []}
    for code in (1000, 1001, 1003, 1008, 1011, 3000, 4999):
        async with connect(url, ping_interval=None) as socket:
            await socket.send("hello")
            await socket.recv()
            await socket.close(code, f"by the client, {code}")
        found["closed"].append([socket.close_code, socket.close_reason])
    for code in (0, 1000, 1001, 1002, 1007, 1009, 1012, 4000):
        async with connect(url, ping_interval=None) as socket:
            await socket.send(f"close {code} by the server ☺")
            try:
                await socket.recv()
            except ConnectionClosed as closed:
                found["closed"].append([closed.rcvd and closed.rcvd.code, closed.rcvd and closed.rcvd.reason])
    # One that just goes away.
    socket = await connect(url, ping_interval=None)
    await socket.send("hello")
    await socket.recv()
    socket.transport.abort()
    print(json.dumps(found))


asyncio.run(asyncio.wait_for(main(), 50))
