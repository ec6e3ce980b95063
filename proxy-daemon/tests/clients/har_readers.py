"""A HAR file as other programs read it: har_readers.py FILE.

Prints one JSON object: for mitmproxy and for haralyzer, a list of [method,
URL, status, began in seconds since 1970, took in ms].
"""
import json
import sys

from haralyzer import HarEntry, HarParser
from mitmproxy import io

with open(sys.argv[1], "rb") as file:
    flows = list(io.FlowReader(file).stream())
mitmproxy = [
    [
        flow.request.method,
        # mitmproxy shows no scheme for CONNECT.
        "" if flow.request.method == "CONNECT" else flow.request.url,
        flow.response.status_code,
        flow.request.timestamp_start,
        (flow.response.timestamp_end - flow.response.timestamp_start) * 1000,
    ]
    for flow in flows
]
entries = [HarEntry(entry) for entry in HarParser.from_file(sys.argv[1]).har_data["entries"]]
haralyzer = [
    [it.request.method, "" if it.request.method == "CONNECT" else it.request.url, it.status, it.startTime.timestamp(), it.time]
    for it in entries
]
bodies = [(flow.response.get_text(strict=False) or "")[:64] for flow in flows]
print(json.dumps({"mitmproxy": mitmproxy, "haralyzer": haralyzer, "bodies": bodies}))
