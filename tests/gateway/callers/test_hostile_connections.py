"""Connections that are slow, silent, many or not HTTP: the others do not notice, and none stays for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
import uvicorn
from autoglm_gateway.server.connections import protocol_of
from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.model import ConnectionLimits, GatewaySettings
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_server import GatewayThread, fake_client, logged_errors
from tests.support.server.raw_http import (
    PATIENCE_SECONDS,
    Answer,
    ask,
    chunked,
    connect,
    head,
    is_closed,
    post,
    read_answer,
    says_something,
    wait_until,
)

pytestmark = pytest.mark.slow

LIMITS = ConnectionLimits(
    max_connections=600, max_connections_per_address=600, head_s=2, body_s=2.5, idle_s=3, unread_s=2
)
PATIENT = ConnectionLimits(head_s=3600, body_s=3600, idle_s=3600, unread_s=3600)
BODY = b'{"model":"autoglm","messages":[{"role":"user","content":"hello"}]}'
LIVE = head(method="GET", path="/health/live")


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayThread]:
    """Nothing of what this file does to it is logged as an error."""
    with logged_errors() as errors, GatewayThread(GatewaySettings(connections=LIMITS), fake_client) as running:
        yield running
    assert not errors


def trickle(port: int, sent: bytes, pause_s: float = 0.05) -> tuple[Answer | None, float]:
    """Byte by byte until the gateway says something: what it says, and after how many seconds."""
    started = time.monotonic()
    with connect(port) as connection:
        for byte in sent:
            connection.sendall(bytes([byte]))
            if says_something(connection, pause_s):
                answer, waited = read_answer(connection), time.monotonic() - started
                assert is_closed(connection)
                return answer, waited
    return None, time.monotonic() - started


def test_a_head_that_takes_too_long_is_given_up(gateway: GatewayThread) -> None:
    answer, waited = trickle(gateway.port, head(*(f"X-{number}: 1" for number in range(50))))
    assert answer is not None and answer.status == 408 and "within 2 s" in answer.error["message"]
    assert waited > 0.9 * LIMITS.head_s


def test_so_is_the_head_of_a_second_request(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(LIVE)
        assert read_answer(connection).status == 200
        connection.sendall(LIVE[:10])
        assert read_answer(connection).status == 408 and is_closed(connection)


@pytest.mark.parametrize("first", [b"", LIVE])
def test_an_idle_connection_is_closed_without_a_word(gateway: GatewayThread, first: bytes) -> None:
    started = time.monotonic()
    with connect(gateway.port) as connection:
        if first:
            connection.sendall(first)
            assert read_answer(connection).status == 200
        assert is_closed(connection)
        assert time.monotonic() - started > 0.9 * LIMITS.idle_s


def test_a_connection_that_is_used_stays(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        until = time.monotonic() + 1.2 * LIMITS.idle_s  # longer than any of the limits
        while time.monotonic() < until:
            connection.sendall(LIVE)
            assert read_answer(connection).status == 200
            connection.sendall(post(BODY))
            assert read_answer(connection).status == 200
            time.sleep(0.4)


@pytest.mark.parametrize("headers", [["X: " + "x" * 100_000], ["X: y"] * 20_000])
def test_a_large_head_is_refused(gateway: GatewayThread, headers: list[str]) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(head(*headers)[:-4])
        assert read_answer(connection).status == 431 and is_closed(connection)


def test_a_head_without_end_is_refused_at_once(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(b"GET /" + b"a" * 80_000)
        answer = read_answer(connection)
    assert answer.status == 431 and answer.error["code"] == "headers_too_large"


CHUNKED = head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunked(BODY)


def test_what_follows_a_body_is_ignored(gateway: GatewayThread) -> None:
    answer = ask(gateway.port, CHUNKED + b"0\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n")
    assert answer.status == 200


@pytest.mark.parametrize("trailer", [b"X: " + b"x" * 600_000, b"X: y\r\n" * 100_000])
def test_what_follows_a_body_without_end_is_refused(gateway: GatewayThread, trailer: bytes) -> None:
    with connect(gateway.port) as connection:
        with suppress(ConnectionError):  # it is closed before all is sent
            connection.sendall(CHUNKED + b"0\r\n" + trailer)
        assert read_answer(connection).status == 431 and is_closed(connection)


@pytest.mark.parametrize("extension", [b";" + b"x" * 600_000, b"0" * 100_000])
def test_so_is_what_stands_before_a_chunk(gateway: GatewayThread, extension: bytes) -> None:
    with connect(gateway.port) as connection:
        with suppress(ConnectionError):
            connection.sendall(head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"5" + extension)
        assert read_answer(connection).status in (400, 431) and is_closed(connection)


async def refuses_unread(scope: Scope, receive: Receive, send: Send) -> None:
    """As a layer does that needs the headers alone."""
    await PlainTextResponse("no", 401)(scope, receive, send)


def test_a_body_that_nobody_wants_may_end_in_time_and_not_later() -> None:
    """Else a connection whose request was refused unread could be kept for ever."""
    config = uvicorn.Config(refuses_unread, http=protocol_of(LIMITS), lifespan="off", log_level="error")
    with (
        GatewayThread(GatewaySettings(), server=uvicorn.Server(config)) as gateway,
        connect(gateway.port) as connection,
    ):
        for _ in range(2):
            connection.sendall(head("Content-Length: 200000"))
            assert read_answer(connection).status == 401
            connection.sendall(b"x" * 200_000)
        started = time.monotonic()
        connection.sendall(head("Content-Length: 200000"))
        assert read_answer(connection).status == 401
        connection.settimeout(0.1)
        while (waited := time.monotonic() - started) < PATIENCE_SECONDS and not is_closed(connection):
            with suppress(ConnectionError):
                connection.sendall(b"x")
        assert 0.9 * LIMITS.body_s < waited < PATIENCE_SECONDS


def test_requests_that_are_not_whole_do_not_keep_the_process() -> None:
    """It would wait for an hour: so long they may take."""
    transport = FakeTransport(Script(words=["word "] * 5, pause_s=0.4))
    patient = GatewaySettings(connections=PATIENT)
    with ExitStack() as stack:
        with GatewayThread(patient, partial(fake_client, transport=transport)) as gateway:
            for sent in (b"", LIVE[:9], head("Content-Length: 9"), CHUNKED):
                stack.enter_context(connect(gateway.port)).sendall(sent)
            whole = stack.enter_context(connect(gateway.port))
            whole.sendall(post(BODY))
            wait_until(lambda: bool(transport.running))
        assert read_answer(whole).status == 200


NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "noise": bytes(range(1, 256)) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\n\r\n",
    "proxy": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "path not ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": head("Content-Length: 5", "Content-Length: 6") + b"123456",
    "length and chunks": head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "bad length": head("Content-Length: -1"),
    "length too long": head(f"Content-Length: {'9' * 60}"),
    "bad chunk": head("Content-Type: application/json", "Transfer-Encoding: chunked") + b"zz\r\n",
    "space before colon": head("Content-Type : application/json"),
    "zero in a header": b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_no_http_is_refused_and_the_connection_closed(gateway: GatewayThread, name: str) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(NOT_HTTP[name])
        answer = read_answer(connection)
        assert answer.status == 400 and answer.error["code"] == "invalid_http"
        assert is_closed(connection)


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_not_taken_up(gateway: GatewayThread, protocol: str) -> None:
    asked = ("Connection: Upgrade", f"Upgrade: {protocol}", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    answer = ask(gateway.port, head(*asked, method="GET", path="/health/live"))
    assert answer.status == 200


def test_requests_in_a_row_are_answered_in_order_and_a_flood_of_them_is_cut(gateway: GatewayThread) -> None:
    with connect(gateway.port) as connection:
        connection.sendall(LIVE * 5 + head("Connection: close", method="GET", path="/v1/models"))
        received = b""
        while more := connection.recv(1 << 16):
            received += more
    assert received.count(b'{"live":true}') == 5 and received.index(b'"list"') > received.rindex(b'"live"')
    with connect(gateway.port) as connection:
        connection.sendall(LIVE * 5_000)
        with suppress(ConnectionError):
            while more := connection.recv(1 << 16):
                received += more
    assert received.count(b"true") < 1_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/%ff%00\ud800".encode("ascii", "ignore").decode(), 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("TRACE", "/nothing", 404),
        ("GET", "/v1/models/" + "m" * 20_000, 404),
        ("GET", "/v1/models/%F0%9F%92%A9", 404),
    ],
)
def test_what_is_not_there_is_told_in_the_same_shape(
    gateway: GatewayThread, method: str, path: str, status: int
) -> None:
    answer = ask(gateway.port, head(method=method, path=path))
    assert answer.status == status and answer.error["type"] == "invalid_request_error"
    assert (status == 405) == ("allow" in answer.headers)


def test_others_are_answered_beside_500_idle_connections(gateway: GatewayThread) -> None:
    """What they cost is measured by the experiment gateway-overhead."""
    with ExitStack() as stack:
        for number in range(500):
            connection = stack.enter_context(connect(gateway.port))
            if number % 2:
                connection.sendall(LIVE[:-2])
        with connect(gateway.port) as connection:
            for _ in range(60):
                connection.sendall(post(BODY))
                assert read_answer(connection).status == 200


def test_a_reader_that_stops_reading_is_given_up() -> None:
    """8 MB of events are more than sockets buffer."""
    transport = FakeTransport(Script(words=["x" * 8192] * 1000))
    limited = GatewaySettings(connections=LIMITS)
    make_client = partial(fake_client, transport=transport)
    with logged_errors() as errors, GatewayThread(limited, make_client) as gateway:
        with connect(gateway.port) as connection:
            connection.sendall(post(BODY[:-1] + b',"stream":true}'))
            wait_until(lambda: bool(transport.requests))
            wait_until(lambda: not transport.running)
            received = 0
            try:
                while more := connection.recv(1 << 16):
                    received += len(more)
            except ConnectionError:
                pass
        assert received < 8192 * 1000 and not transport.running and not errors


@pytest.mark.parametrize(("name", "value"), [("max_connections", 0), ("head_s", -1.0), ("idle_s", float("nan"))])
def test_a_limit_out_of_its_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        ConnectionLimits(**{name: value})  # type: ignore[arg-type]


GOOD = post(BODY, "Accept: */*", "X-Request-Id: 1")
mutations = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from(["insert", "delete", "replace"]), st.binary(max_size=4)),
    max_size=6,
)


@given(mutations)
@settings(max_examples=150, deadline=None)
def test_requests_with_random_damage_leave_the_gateway_well(
    gateway: GatewayThread, damage: list[tuple[int, str, bytes]]
) -> None:
    """The fixture checks that none of them is logged as an error."""
    damaged = bytearray(GOOD)
    for place, kind, inserted in damage:
        damaged[place : place + (kind != "insert")] = b"" if kind == "delete" else inserted
    with connect(gateway.port, 0.02) as connection, suppress(OSError, EOFError, KeyError, ValueError):
        connection.sendall(damaged)
        answer = read_answer(connection)
        assert answer.status < 500
        if answer.status != 200:
            assert answer.error
    assert ask(gateway.port, LIVE).status == 200
