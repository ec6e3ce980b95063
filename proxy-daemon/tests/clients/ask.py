"""Requests one after the other, each on a connection of its own: ask.py JSON.

The argument is a list of [METHOD, URL, HEADERS, COUNT]; prints one JSON list
with [status, reason, headers, body] for each answer.
"""
import http.client
import json
import ssl
import sys
import urllib.parse

context = ssl.create_default_context()
answers = []
for method, url, headers, count in json.loads(sys.argv[1]):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPSConnection(parts.netloc, context=context)
    for _ in range(count):
        target = parts.path + ("?" + parts.query if parts.query else "")
        connection.request(method, target, body=b"x" if method in ("PUT", "POST") else None, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        fields = {name.lower(): value for name, value in answer.getheaders()}
        answers.append([answer.status, answer.reason, fields, body])
    connection.close()
print(json.dumps(answers))
