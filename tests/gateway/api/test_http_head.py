"""What a request may say of itself: one version, one host, one length."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.gateway.gateway_server import GatewayThread, fake_client
from tests.support.server.raw_http import ask, connect, is_closed, read_answer

BODY = b'{"model":"autoglm","messages":[{"role":"user","content":"hello"}]}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    with GatewayThread(GatewaySettings(), fake_client) as running:
        yield running


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"GET /health/live HTTP/2.0\r\nHost: a\r\n", "HTTP/2.0"),
        (b"GET /health/live HTTP/0.9\r\nHost: a\r\n", "HTTP/0.9"),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "2 Host headers"),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\nhost: a\r\n", "2 Host headers"),
        (b"GET /health/live HTTP/1.0\r\nHost: a\r\nHost: a\r\n", "2 Host headers"),
        (b"GET /health/live HTTP/1.1\r\n", "no Host"),
        (b"GET /health/live HTTP/1.1\r\nHost: a b\r\n", "'a b'"),
        (b"GET /health/live HTTP/1.1\r\nHost: a, b@c\r\n", "'a, b@c'"),
        (b"GET /health/live HTTP/1.1\r\nHost: a/b\r\n", "'a/b'"),
        (b"GET /health/live HTTP/1.1\r\nHost: \xe2\x80\xae\r\n", "names no host"),
        (b"GET /health/live HTTP/1.1\r\nHost: [::1\r\n", "names no host"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + LENGTH + LENGTH, "Invalid HTTP"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + LENGTH, "Invalid HTTP"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n", "Invalid HTTP"),
        (b"GET /health/live HTTP/1.1\r\nHost : a\r\n", "Invalid HTTP"),
    ],
)
def test_what_is_no_request_of_http_1_1_is_refused_and_the_connection_ends(
    gateway: GatewayThread, head: bytes, said: str
) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(head + b"\r\n" + (BODY if head.startswith(b"POST") else b""))
        answer = read_answer(connection)
        assert answer.status == 400 and answer.error["code"] == "invalid_http" and said in answer.error["message"]
        assert answer.body.isascii() and is_closed(connection)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health/live HTTP/1.0\r\n",
        b"GET /health/live HTTP/1.1\r\nHost:\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: [::1]:8080\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: gpu-a_1.example.org:8080 \r\n",
    ],
)
def test_what_is_one_is_served(gateway: GatewayThread, head: bytes) -> None:
    assert ask(gateway.port, head + b"\r\n").status == 200


def test_a_second_request_of_a_connection_is_looked_at_too(gateway: GatewayThread) -> None:
    first = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(gateway.port) as connection:
        connection.sendall(first)
        assert read_answer(connection).status == 200
        connection.sendall(first.replace(b"1.1", b"2.0"))
        assert read_answer(connection).status == 400 and is_closed(connection)
