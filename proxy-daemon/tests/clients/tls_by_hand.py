"""TLS connections made and ended by hand: tls_by_hand.py HOST, one JSON list per line on stdin.

["open", NAME], ["hello", NAME] (the first message of a handshake and no more), ["send", NAME, TEXT],
["head", NAME] (reads one head), ["notify", NAME] (close_notify, the socket stays), ["close", NAME] (the socket
alone), ["drain", NAME] (whatever still comes on the socket, to its end), ["port", NAME] (its own), ["flood", NAME]
(sends until nothing more is taken for a second), ["reset", NAME]. Prints a JSON list for each: the line's first word,
and what it found. Goes through a memory buffer, since Python's sockets join the two ways to end.
"""
import json
import select
import socket
import ssl
import struct
import sys

host = sys.argv[1]


class Connection:
    def __init__(self):
        self.socket = socket.create_connection((host, 443), timeout=20)
        self.came, self.goes, self.text = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
        self.tls = ssl.create_default_context().wrap_bio(self.came, self.goes, server_hostname=host)

    def once(self, step):
        """Takes a step as far as it goes without the peer."""
        try:
            return step()
        except ssl.SSLWantReadError:
            return None
        finally:
            self.socket.sendall(self.goes.read())

    def until(self, step):
        while True:
            try:
                result = step()
                self.socket.sendall(self.goes.read())
                return result
            except ssl.SSLWantReadError:
                self.socket.sendall(self.goes.read())
                piece = self.socket.recv(65536)
                if not piece:
                    raise EOFError
                self.came.write(piece)

    def close(self):
        # What has come and is not read, session tickets above all, would make a reset of the close.
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        self.socket.close()

    def flood(self):
        self.socket.setblocking(False)
        sent = 0
        while select.select([], [self.socket], [], 1)[1]:
            if not self.goes.pending:
                self.tls.write(b"f" * 16384)
            record = self.goes.read()
            taken = self.socket.send(record)
            sent += taken
            rest = memoryview(record)[taken:]
            while rest and select.select([], [self.socket], [], 1)[1]:
                taken = self.socket.send(rest)
                sent += taken
                rest = rest[taken:]
        return sent

    def head(self):
        while b"\r\n\r\n" not in self.text:
            piece = self.until(lambda: self.tls.read(65536))
            if not piece:
                raise EOFError
            self.text += piece
        head, _, self.text = self.text.partition(b"\r\n\r\n")
        return head.decode("latin1")


connections = {}
for line in sys.stdin:
    what, name, *rest = json.loads(line)
    answer = [what]
    if what in ("open", "hello"):
        connections[name] = Connection()
    connection = connections[name]
    if what == "open":
        connection.until(connection.tls.do_handshake)
    elif what == "hello":
        connection.once(connection.tls.do_handshake)
    elif what == "send":
        connection.until(lambda: connection.tls.write(rest[0].encode("latin1")))
    elif what == "head":
        answer.append(connection.head())
    elif what == "notify":
        connection.once(connection.tls.unwrap)
    elif what == "close":
        connection.close()
    elif what == "port":
        answer.append(connection.socket.getsockname()[1])
    elif what == "flood":
        answer.append(connection.flood())
    elif what == "reset":
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.socket.close()
    elif what == "drain":
        while connection.socket.recv(65536):
            pass
    print(json.dumps(answer), flush=True)
