"""HTTP by hand: what no well-behaved client would send, and sockets that are left in the middle."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHATS = "/v1/chat/completions"
PATIENCE_SECONDS = 120.0  # for what should come at once


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """In OpenAI's shape, or the assertion fails."""
        assert self.headers["content-type"] == "application/json", self
        (content,) = json.loads(self.body).items()
        assert content[0] == "error" and set(content[1]) == {"message", "type", "param", "code"}, self.body
        assert "Traceback" not in content[1]["message"] and len(content[1]["message"]) < 500, self.body
        return dict(content[1])


def connect(port: int, timeout: float = PATIENCE_SECONDS) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "it never came true"
        time.sleep(0.01)


def head(*headers: str, method: str = "POST", path: str = CHATS) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway", *headers, "", ""]).encode()


def post(body: bytes, *headers: str, path: str = CHATS, kind: str = "application/json") -> bytes:
    return head(f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, path=path) + body


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def read_answer(connection: socket.socket) -> Answer:
    """One that says its length, as errors and whole answers do. Raises EOFError where none comes."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    top, _, body = received.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _more(connection)
    return Answer(int(status.split()[1]), headers, body)


def says_something(connection: socket.socket, within_s: float) -> bool:
    """An answer, a part of one, or the connection's end has come."""
    return bool(select.select([connection], [], [], within_s)[0])


def is_closed(connection: socket.socket) -> bool:
    """By the other side; waits for it as long as the socket's time limit."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def ask(port: int, request: bytes) -> Answer:
    with connect(port) as connection:
        connection.sendall(request)
        return read_answer(connection)


def _more(connection: socket.socket) -> bytes:
    received = connection.recv(1 << 16)
    if not received:
        raise EOFError("the connection was closed before an answer")
    return received
