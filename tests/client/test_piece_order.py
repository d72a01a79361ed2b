"""An answer whose pieces do not come in turn ends with one sentence, on every way to read it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from autoglm_client import AsyncClient, Client, PieceOrderError, ProtocolError
from autoglm_client.calls.piece_order import PieceOrder
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script, response
from tests.support.gateway.gateway_server import GatewayThread, fake_client

WORDS = ("one ", "two ", "three ", "four")
WRONG = [
    pytest.param([0, 2, 1, 3], ("one ",), 2, 1, id="exchanged"),
    pytest.param([0, 1, 3, 4], ("one ", "two "), 3, 2, id="missing"),
    pytest.param([0, 1, 1, 2], ("one ", "two "), 1, 2, id="twice"),
    pytest.param([1, 2, 3, 4], (), 1, 0, id="first missing"),
    pytest.param([0, 1, 2, -1], ("one ", "two ", "three "), -1, 3, id="negative"),
]
wrong = pytest.mark.parametrize(("numbers", "read", "came", "due"), WRONG)


def sentence(came: int, due: int) -> str:
    return (
        f"the server's response {came} to this request came where response {due} was due: "
        "a part of the answer is missing or out of order"
    )


async def until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.002)


@wrong
async def test_a_stream_ends_where_the_order_does(
    numbers: list[int], read: tuple[str, ...], came: int, due: int
) -> None:
    transport = FakeTransport(Script(words=WORDS, numbers=numbers, pause_s=0.002))
    texts = []
    async with AsyncClient("fake:1", transport=lambda _: transport) as client:
        with pytest.raises(PieceOrderError, match=f"^{re.escape(sentence(came, due))}$") as failure:
            async for piece in client.stream("hi"):
                texts.append(piece.text)
        await until(lambda: not transport.running)
    assert tuple(texts) == read, "what came after the fault was handed out"
    assert (failure.value.request_id, failure.value.endpoint) == (transport.requests[0].id, "fake:1")
    assert len(transport.requests) == 1, "the server's fault was tried again"
    assert not transport.aborted, "the call was cut off, which leaves the request on the server for ever"
    if len(read) < 3:
        assert {"cancel": [transport.requests[0].id]} in transport.controls


@wrong
def test_the_blocking_client_says_the_same(numbers: list[int], read: tuple[str, ...], came: int, due: int) -> None:
    transport = FakeTransport(Script(words=WORDS, numbers=numbers))
    with (
        Client("fake:1", transport=lambda _: transport) as client,
        pytest.raises(ProtocolError, match=re.escape(sentence(came, due))),
    ):
        client.stream("hi").read_all()


async def test_a_whole_answer_has_the_number_0() -> None:
    for numbers, is_right in (([0], True), ([1], False)):
        transport = FakeTransport(Script(words=WORDS, numbers=numbers))
        async with AsyncClient("fake:1", transport=lambda _, t=transport: t) as client:  # type: ignore[misc]
            if is_right:
                assert (await client.generate("hi")).text == "".join(WORDS)
            else:
                with pytest.raises(PieceOrderError, match=re.escape(sentence(1, 0))):
                    await client.generate("hi")


@pytest.mark.parametrize("numbers", [None, range(6)], ids=["an older server", "numbered"])
async def test_an_answer_in_order_is_whole(numbers: range | None) -> None:
    """Heartbeats have numbers, too."""
    transport = FakeTransport(Script(words=WORDS, heartbeats=2, numbers=numbers))
    async with AsyncClient("fake:1", transport=lambda _: transport) as client:
        assert (await client.stream("hi").read_all()).text == "".join(WORDS)


async def test_a_lost_heartbeat_is_noticed() -> None:
    transport = FakeTransport(Script(words=WORDS, heartbeats=1, numbers=[1, 2, 3, 4, 5]))
    async with AsyncClient("fake:1", transport=lambda _: transport) as client:
        with pytest.raises(PieceOrderError):
            await client.stream("hi").read_all()


def test_a_number_that_cannot_be_read_is_a_protocol_error() -> None:
    broken = response("a", "", 1, number=0)
    broken.raw_output_contents[-1] = b"x"
    with pytest.raises(ProtocolError, match="cannot be read"):
        PieceOrder().check(broken)


@pytest.fixture
def gateway() -> Iterator[GatewayThread]:
    transport = FakeTransport(Script(words=WORDS, numbers=[0, 2, 1, 3]))
    with GatewayThread(GatewaySettings(), partial(fake_client, transport=transport)) as running:
        yield running


def test_the_gateway_passes_the_sentence_on(gateway: GatewayThread) -> None:
    body = {"model": "autoglm", "prompt": "hi", "stream": True}
    answer = httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60)
    events = [
        json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    assert [event["choices"][0]["text"] for event in events if "choices" in event] == ["one "]
    assert events[-1]["error"]["message"] == sentence(2, 1)
