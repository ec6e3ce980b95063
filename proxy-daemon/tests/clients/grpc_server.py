"""A gRPC server that is unavailable twice: grpc_server.py ADDRESS CERT KEY."""
import sys
from concurrent import futures

import grpc

address, certificate, key = sys.argv[1:]
asked = 0


def call(_, context):
    global asked
    asked += 1
    if asked <= 2:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    context.set_trailing_metadata((("asked", str(asked)),))
    return b""


def late(_, context):
    """Fails once the response has begun."""
    context.send_initial_metadata((("begun", "yes"),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(late if details.method.endswith("/Late") else call)


server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((Handler(),))
read = lambda path: open(path, "rb").read()
server.add_secure_port(address, grpc.ssl_server_credentials([(read(key), read(certificate))]))
server.start()
print("ready", flush=True)
server.wait_for_termination()
