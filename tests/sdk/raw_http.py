"""A connection on which a test controls every byte, and multipart forms that are assembled byte by byte."""

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
class Response:
    status: int
    headers: Message
    body: bytes

    def json(self):
        return json.loads(self.body)

    def error_message(self):
        """Returns the message of an error response, and checks its envelope."""
        assert self.status >= 400
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        body = self.json()
        assert body["code"] == self.status and body["msg"]
        return body["msg"]


class RawConnection:
    """A TCP connection to the server."""

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
        """Closes the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data):
        self.socket.sendall(data)

    def send_request(self, method, path, headers=(), body=b""):
        """Sends a request. `headers` override the defaults, which include the key; one that is None is omitted."""
        all_headers = {"Host": "localhost", "Authorization": f"Bearer {self.key}", **dict(headers)}
        if body and "Transfer-Encoding" not in all_headers:
            all_headers.setdefault("Content-Length", len(body))
        self.send(request_head(method, path, all_headers) + body)

    def post_upload(self, disk_id, body, headers=()):
        """Sends the request head of an upload. The caller sends the body."""
        headers = {"Content-Type": FORM, "Content-Length": len(body), **dict(headers)}
        self.send_request("POST", f"/api/v1/disk/{disk_id}/artifact", headers)

    def read_response(self, method="GET"):
        """Reads the next response. `method` is the method of its request."""
        line = self.reader.readline()
        assert line.startswith(b"HTTP/1.1 "), f"not a response: {line!r}"
        status = int(line.split()[1])
        headers = http.client.parse_headers(self.reader)
        if method == "HEAD" or status in (204, 304) or status < 200:
            return Response(status, headers, b"")
        assert "Transfer-Encoding" not in headers
        return Response(status, headers, self.reader.read(int(headers["Content-Length"])))

    def is_closed(self):
        """Waits until the server closes the connection. Returns False if the server sends a byte instead."""
        try:
            return self.reader.read(1) == b""
        except ConnectionResetError:
            return True


def request_head(method, path, headers):
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def exchange(server, method, path, headers=(), body=b""):
    """Sends one request on a new connection, and returns the response."""
    with RawConnection(server) as connection:
        connection.send_request(method, path, headers, body)
        return connection.read_response(method)


def form_part(name, content, filename=None, disposition=None):
    """Returns a part of a form. `filename` is not escaped; `disposition` replaces the value of the whole header."""
    if disposition is None:
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
    if isinstance(disposition, str):
        disposition = disposition.encode()
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


def form_body(*parts):
    """Returns a complete form with these parts."""
    return b"".join(b"--" + BOUNDARY + b"\r\n" + part for part in parts) + b"--" + BOUNDARY + b"--\r\n"
