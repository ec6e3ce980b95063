"""Fetches and posts with one of Python's libraries: get.py LIBRARY ORIGIN

Prints a line for each answer: its status, length and digest.
"""
import hashlib
import sys

library, origin = sys.argv[1:]
BODY = b"0123456789" * 5000


def tell(status, body):
    print(status, len(body), hashlib.sha256(body).hexdigest())


if library == "urllib":
    import urllib.request

    for data in (None, BODY):
        with urllib.request.urlopen(origin + ("/echo" if data else "/bytes/70000"), data=data) as answer:
            tell(answer.status, answer.read())
elif library == "requests":
    import requests

    with requests.Session() as session:
        answer = session.get(origin + "/bytes/70000")
        tell(answer.status_code, answer.content)
        answer = session.post(origin + "/echo", data=BODY)
        tell(answer.status_code, answer.content)
elif library in ("httpx", "httpx-h2"):
    import httpx

    with httpx.Client(http2=library == "httpx-h2") as client:
        answer = client.get(origin + "/bytes/70000")
        tell(answer.status_code, answer.content)
        answer = client.post(origin + "/echo", content=BODY)
        tell(answer.status_code, answer.content)
elif library == "aiohttp":
    import asyncio

    import aiohttp

    async def main():
        async with aiohttp.ClientSession() as session:
            async with session.get(origin + "/bytes/70000") as answer:
                tell(answer.status, await answer.read())
            async with session.post(origin + "/echo", data=BODY) as answer:
                tell(answer.status, await answer.read())

    asyncio.run(main())
elif library == "httplib2":
    import httplib2

    client = httplib2.Http()
    answer, body = client.request(origin + "/bytes/70000")
    tell(answer.status, body)
    answer, body = client.request(origin + "/echo", "POST", body=BODY)
    tell(answer.status, body)
