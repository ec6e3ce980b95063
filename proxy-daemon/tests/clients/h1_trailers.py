"""An HTTP/1.1 request with trailers, and all of its answer: h1_trailers.py HOST PATH."""
import socket
import ssl
import sys

host, path = sys.argv[1:]
stream = ssl.create_default_context().wrap_socket(socket.create_connection((host, 443), timeout=20), server_hostname=host)
stream.sendall(
    f"POST {path} HTTP/1.1\r\nHost: {host}\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n"
    "Trailer: X-Client-Checksum\r\n\r\n4\r\nwith\r\n9\r\n trailers\r\n0\r\nX-Client-Checksum: beef\r\nX-Api-Key: hushhush\r\n\r\n".encode()
)
answer = b""
while data := stream.recv(65536):
    answer += data
sys.stdout.buffer.write(answer.partition(b"\r\n0\r\n")[2])
