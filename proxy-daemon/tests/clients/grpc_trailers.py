"""Calls of grpc_server.py, and how each ended: grpc_trailers.py HOST."""
import sys

import grpc

channel = grpc.secure_channel(f"{sys.argv[1]}:443", grpc.ssl_channel_credentials(), options=[("grpc.enable_retries", 0)])
for name in ["Ask", "Ask", "Ask", "Late"]:
    try:
        _, call = channel.unary_unary(f"/test.Service/{name}").with_call(b"", timeout=20)
    except grpc.RpcError as error:
        call = error
    print(name, call.code().name, call.details(), [pair for pair in call.trailing_metadata() if pair[0] == "asked"])
