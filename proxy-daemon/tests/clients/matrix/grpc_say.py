"""One unary call with grpcio: grpc_say.py HOST"""
import hashlib
import sys

import grpc

with grpc.secure_channel(sys.argv[1] + ":443", grpc.ssl_channel_credentials()) as channel:
    say = channel.unary_unary("/demo.Echo/Say")
    answer, call = say.with_call(b"0123456789" * 5000, metadata=[("x-note", "from the client")])
    print(call.code(), sorted(call.trailing_metadata()), len(answer), hashlib.sha256(answer).hexdigest())
