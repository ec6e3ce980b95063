"""An OTLP receiver of OpenTelemetry's own message types.

Arguments: an address, a port, a file, and how many requests are refused first.
Each request that is accepted becomes a line of JSON in the file.
"""
import http.server
import json
import sys

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
}
host, port, path, refused = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global refused
        body = self.rfile.read(int(self.headers["content-length"]))
        if refused > 0:
            refused -= 1
            return self.answer(503, b"")
        if self.path not in KINDS or self.headers["content-type"] != "application/x-protobuf":
            return self.answer(404, b"")
        request, response = KINDS[self.path]
        message = request()
        message.ParseFromString(body)
        row = {"path": self.path, "headers": dict(self.headers.items()), "message": MessageToDict(message)}
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
        return self.answer(200, response().SerializeToString())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((host, port), Handler)
print("ready", flush=True)
server.serve_forever()
