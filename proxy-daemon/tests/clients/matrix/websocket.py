"""A WebSocket conversation: websocket.py URL

As a server: websocket.py ADDRESS CERTIFICATE KEY LOG, which writes a line for
each request and each message that it receives.
"""
import asyncio
import hashlib
import ssl
import sys

import websockets


def tell(message):
    data = message.encode() if isinstance(message, str) else message
    return f"{type(message).__name__} {len(data)} {hashlib.sha256(data).hexdigest()}"


async def client(url):
    async with websockets.connect(url) as socket:
        for message in ("a text", b"0123456789" * 5000, "another"):
            await socket.send(message)
            print(tell(await socket.recv()))
        await (await socket.ping(b"are you there"))
        await socket.close(4001, "enough")
        print(socket.close_code, socket.close_reason)


async def server(address, certificate, key, log):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    def note(line):
        with open(log, "a") as file:
            file.write(line + "\n")

    async def serve(socket):
        request = socket.request
        fields = [[name.lower(), value] for name, value in request.headers.raw_items()]
        masked = [[name, "…" if name == "sec-websocket-key" else value] for name, value in fields]
        note(f"GET {request.path} {masked}")
        async for message in socket:
            note("message " + tell(message))
            await socket.send(message)
        note(f"message closed {socket.close_code} {socket.close_reason}")

    async with websockets.serve(serve, address, 443, ssl=context):
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(client(sys.argv[1]) if len(sys.argv) == 2 else server(*sys.argv[1:]))
