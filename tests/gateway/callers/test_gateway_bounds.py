"""What one request, one client and one server that is away can do to others through the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from autoglm_client import AsyncClient
from autoglm_client.exceptions import CannotConnectError, ConnectTimeout, InterTokenTimeout, TotalTimeout
from autoglm_gateway.api.json_body import parse_object
from autoglm_gateway.app import create_app
from autoglm_gateway.errors import api_error
from autoglm_gateway.server.connections import protocol_of
from autoglm_gateway.settings.model import ConnectionLimits, GatewaySettings
from uvicorn import Config
from uvicorn.server import ServerState

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_fakes import BASE, HELLO, bearer, made_keys, opened

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@asynccontextmanager
async def in_front_of(transports: dict[str, FakeTransport]) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        GatewaySettings(servers=tuple(transports)),
        lambda urls, model: AsyncClient(urls, model=model, transport=transports.__getitem__),
    )
    inner = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=inner, base_url=BASE) as http:
        yield http


async def test_the_second_server_answers_where_the_first_is_away_from_the_start() -> None:
    away = FakeTransport(Script(connect_errors=[CannotConnectError("no server there")] * 99))
    async with in_front_of({"away:1": away, "here:1": FakeTransport()}) as http:
        for stream in (False, True):
            body = {"model": "autoglm", "messages": HELLO, "stream": stream}
            assert (await http.post(CHAT, json=body)).status_code == 200


async def test_choices_count_for_what_a_key_may_have_under_way() -> None:
    keys, (key,) = made_keys("alice", more=", concurrency = 3")
    transport = FakeTransport(Script(pause_s=0.01))
    async with opened(GatewaySettings(keys=keys), transport) as gateway:
        ask = {"model": "autoglm", "prompt": ["a", "b"], "n": 2}
        refused = await gateway.http.post(COMPLETIONS, json=ask, headers=bearer(key))
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "concurrency_limit_exceeded"
        assert not transport.requests
        one = {"model": "autoglm", "prompt": "a", "n": 3}
        for _ in range(3):  # and are given back
            answers = await asyncio.gather(
                gateway.http.post(COMPLETIONS, json=one, headers=bearer(key)),
                gateway.http.post(COMPLETIONS, json=one, headers=bearer(key)),
            )
            assert sorted(answer.status_code for answer in answers) == [200, 429]
    assert transport.max_running == 3


async def test_a_request_has_a_bounded_number_of_choices() -> None:
    transport = FakeTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        answer = await gateway.http.post(COMPLETIONS, json={"model": "autoglm", "prompt": ["a"] * 20, "n": 4})
    assert answer.status_code == 400 and "80 choices" in answer.json()["error"]["message"] and not transport.requests


async def test_bodies_that_nobody_reads_are_not_held() -> None:
    """Or whoever has no key could fill what is kept for those who have."""
    bounded = GatewaySettings(max_body_bytes=100, max_held_bytes=100)
    async with opened(bounded) as gateway:
        answer = await gateway.http.request("GET", "/health/live", content=b"x" * 1000)
        assert answer.status_code == 200
        refused = await gateway.http.post(CHAT, content=b"x" * 1000, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413


async def test_an_answer_that_the_server_cancelled_is_no_complete_one() -> None:
    async with opened(GatewaySettings(), FakeTransport(Script(finish_reason="cancelled"))) as gateway:
        answer = await gateway.http.post(CHAT, json={"model": "autoglm", "messages": HELLO})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_before_the_first_token_has_a_status_of_its_own(stream: bool) -> None:
    script = Script(words=[""], finish_reason="deadline")
    async with opened(GatewaySettings(deadline_ms=5), FakeTransport(script)) as gateway:
        answer = await gateway.http.post(CHAT, json={"model": "autoglm", "messages": HELLO, "stream": stream})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "deadline"
    assert answer.headers["x-should-retry"] == "false" and "retry-after" not in answer.headers


def test_a_server_that_does_not_take_the_connection_is_unavailable() -> None:
    assert api_error(ConnectTimeout("no connection within 5 s", endpoint="a:1")).status == 503


def test_a_server_that_stands_still_is_the_servers_fault_and_a_time_limit_is_not() -> None:
    assert api_error(InterTokenTimeout("nothing for 60 s")).status == 504
    assert (late := api_error(TotalTimeout("longer than 5 s"))).status == 422 and late.headers == {
        "X-Should-Retry": "false"
    }


async def test_names_with_a_slash_are_found_and_nobody_is_sent_elsewhere() -> None:
    async with opened(GatewaySettings(model="org/model", aliases={})) as gateway:
        assert (await gateway.http.get("/v1/models/org/model")).json()["id"] == "org/model"
        assert (await gateway.http.get("/v1/models/", headers={"Host": "evil.example"})).status_code == 404


@pytest.mark.parametrize("part", [b'{"a" :1},', b"{},", b"[],"])
def test_parts_are_counted_however_they_are_spaced(part: bytes) -> None:
    with pytest.raises(Exception, match="more than 100,000 keys, lists and objects"):
        parse_object(b'{"x":[' + part * 110_000 + b"1]}")


def test_text_that_looks_like_parts_is_text() -> None:
    text = ": { [ \\" * 60_000
    parsed = parse_object(json.dumps({"x": text}).encode())
    assert parsed == {"x": text}


@pytest.mark.parametrize(
    "many", ['""' * 70_000, '"' + "\\\\" * 70_000 + '"', '"\\""' * 50_000, '"' + "x" * 65_535 + '"']
)
def test_strings_of_any_length_keep_their_ends(many: str) -> None:
    """Blocks of the count begin and end anywhere in them."""
    inside = '"' + ":" * 150_000 + '"'
    with pytest.raises(Exception, match=r"the body is (no JSON|a JSON array)"):
        parse_object(f"[{many}{inside}]".encode())
    with pytest.raises(Exception, match="more than 100,000 keys, lists and objects"):
        parse_object(f"[{many}{inside}{'[' * 100_001}]".encode())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent, self.closed = b"", False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def test_empty_lines_after_a_body_do_not_end_the_answer_under_way() -> None:
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await may_end.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    config = Config(app, http=protocol_of(ConnectionLimits(head_s=0.05)), log_level="error", lifespan="off")
    config.load()
    protocol = config.http_protocol_class(config, ServerState(), {})  # type: ignore[call-arg]
    wire = Wire()
    protocol.connection_made(wire)
    protocol.data_received(b"GET /A HTTP/1.1\r\nHost: x\r\n\r\n")  # type: ignore[attr-defined]
    protocol.data_received(b"\r\n")  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    may_end.set()
    await until(lambda: wire.sent.endswith(b"ok") or wire.closed)
    assert wire.sent.endswith(b"ok") and not wire.closed


async def test_empty_lines_alone_do_not_keep_a_connection() -> None:
    config = Config(create_app(GatewaySettings()), http=protocol_of(ConnectionLimits(head_s=0.05)), lifespan="off")
    config.load()
    protocol = config.http_protocol_class(config, ServerState(), {})  # type: ignore[call-arg]
    wire = Wire()
    protocol.connection_made(wire)
    protocol.data_received(b"\r\n")  # type: ignore[attr-defined]
    await until(lambda: wire.closed)
    assert b" 408 " in wire.sent


async def test_a_request_that_was_pipelined_is_told_that_its_client_left() -> None:
    """A is answered, B under way, C waits when the connection breaks."""
    begun: list[str] = []
    told: list[str] = []
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        begun.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        if scope["path"] == "/B":
            assert (await receive())["type"] == "http.disconnect"
            told.append(scope["path"])
        else:
            await may_end.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    config = Config(app, http=protocol_of(ConnectionLimits()), log_level="error", lifespan="off")
    config.load()
    protocol = config.http_protocol_class(config, ServerState(), {})  # type: ignore[call-arg]
    wire = Wire()
    protocol.connection_made(wire)
    for name in "ABC":
        protocol.data_received(f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())  # type: ignore[attr-defined]
        await until(lambda: bool(begun))
    may_end.set()
    await until(lambda: begun == ["/A", "/B"])
    protocol.connection_lost(ConnectionResetError())
    await until(lambda: bool(told))
    await asyncio.sleep(0.02)
    assert told == ["/B"] and begun == ["/A", "/B"]
