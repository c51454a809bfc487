"""A connection on which a test says exactly what goes over it, and multipart forms put together by hand."""

import http.client
import json
import socket
import struct
from dataclasses import dataclass
from email.message import Message

BOUNDARY = b"----the-boundary-of-the-tests"
FORM = "multipart/form-data; boundary=" + BOUNDARY.decode()
SECONDS = 30


@dataclass
class Answer:
    status: int
    headers: Message
    body: bytes

    def json(self):
        return json.loads(self.body)

    def refusal(self):
        """The message of a refusal, which has the shape of all of them."""
        assert self.status >= 400
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        said = self.json()
        assert said["code"] == self.status and said["msg"]
        return said["msg"]


class Wire:
    """A connection to the server."""

    def __init__(self, server):
        self.key = server.key
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.reader.close()
        self.socket.close()

    def reset(self):
        """Hangs up without a good-bye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, method, path, headers=(), body=b""):
        """Sends a request with the key, unless the headers say otherwise; a header that is None is left out."""
        all_headers = {"Host": "localhost", "Authorization": f"Bearer {self.key}", **dict(headers)}
        if body and "Transfer-Encoding" not in all_headers:
            all_headers.setdefault("Content-Length", len(body))
        self.send(head(method, path, all_headers) + body)

    def post_upload(self, disk_id, body, headers=()):
        """Sends the head of an upload; the body is the caller's."""
        headers = {"Content-Type": FORM, "Content-Length": len(body), **dict(headers)}
        self.ask("POST", f"/api/v1/disk/{disk_id}/artifact", headers)

    def answer(self, method="GET"):
        """Reads the next answer; `method` is the one of its question."""
        line = self.reader.readline()
        assert line.startswith(b"HTTP/1.1 "), f"no answer but {line!r}"
        status = int(line.split()[1])
        headers = http.client.parse_headers(self.reader)
        if method == "HEAD" or status in (204, 304) or status < 200:
            return Answer(status, headers, b"")
        assert "Transfer-Encoding" not in headers
        return Answer(status, headers, self.reader.read(int(headers["Content-Length"])))

    def is_closed(self):
        """Waits for the server to hang up; False if it says something instead."""
        try:
            return self.reader.read(1) == b""
        except ConnectionResetError:
            return True


def head(method, path, headers):
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def exchange(server, method, path, headers=(), body=b""):
    """One request on a connection of its own."""
    with Wire(server) as wire:
        wire.ask(method, path, headers, body)
        return wire.answer(method)


def part(name, content, filename=None, disposition=None):
    """A part of a form; `filename` goes in as it is, `disposition` in place of the whole header's value."""
    if disposition is None:
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
    if isinstance(disposition, str):
        disposition = disposition.encode()
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


def upload(*parts):
    """A whole form of these parts."""
    return b"".join(b"--" + BOUNDARY + b"\r\n" + each for each in parts) + b"--" + BOUNDARY + b"--\r\n"
