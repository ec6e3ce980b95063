"""An HTTP/2 request with trailers, and the trailers of its answer: h2_trailers.py HOST PATH.

Prints one JSON object.
"""
import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

host, path = sys.argv[1:]
context = ssl.create_default_context()
context.set_alpn_protocols(["h2"])
stream = context.wrap_socket(socket.create_connection((host, 443), timeout=20), server_hostname=host)
connection = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
request = [(":method", "POST"), (":scheme", "https"), (":authority", host), (":path", path), ("te", "trailers")]
connection.send_headers(1, request)
connection.send_data(1, b"with trailers")
connection.send_headers(1, [("x-client-checksum", "beef"), ("x-more", "1")], end_stream=True)
stream.sendall(connection.data_to_send())
result = {"alpn": stream.selected_alpn_protocol(), "headers": [], "trailers": [], "body": 0, "reset": None}
open_stream = True
while open_stream:
    data = stream.recv(65536)
    if not data:
        break
    for event in connection.receive_data(data):
        if isinstance(event, h2.events.ResponseReceived):
            result["headers"] = event.headers
        elif isinstance(event, h2.events.TrailersReceived):
            result["trailers"] = event.headers
        elif isinstance(event, h2.events.DataReceived):
            result["body"] += len(event.data)
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            result["reset"] = int(event.error_code)
            open_stream = False
        elif isinstance(event, (h2.events.StreamEnded, h2.events.ConnectionTerminated)):
            open_stream = False
    stream.sendall(connection.data_to_send())
print(json.dumps(result))
