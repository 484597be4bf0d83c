"""HTTP by the byte: sockets that send what no library would."""

import re
import socket


class Line:
    """One connection."""

    def __init__(self, address, source=None, timeout=60):
        host, port = address.split(":")
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, int(port)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def to_the_end(self):
        """Everything until the other side closes; TimeoutError when it does not."""
        got = b""
        try:
            while more := self.socket.recv(65536):
                got += more
        except ConnectionError:
            pass
        return got

    def status(self):
        """Of the next answer, whose body is read too."""
        got = b""
        while b"\r\n\r\n" not in got:
            more = self.socket.recv(65536)
            assert more, f"closed after {got!r}"
            got += more
        head, _, body = got.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
        while len(body) < length:
            body += self.socket.recv(65536)
        return int(head.split()[1])


def head(method, path, *headers, key=None):
    """A head with Host, the key if there is one, and the given lines."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *([f"X-API-Key: {key}"] if key else []), *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def exchange(address, data, source=None):
    """Sends all of it on a new connection; everything that comes until the other side closes."""
    with Line(address, source) as line:
        try:
            line.send(data)
        except ConnectionError:
            pass  # refused before it was all sent
        return line.to_the_end()


def statuses(answers):
    """The statuses in a stream of answers."""
    return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
