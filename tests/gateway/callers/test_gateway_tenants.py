"""Tenants of a gateway on a real socket, in front of a server that lives in the test: what a client that leaves gives
back, and that one who floods takes nothing from another."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from autoglm_client import AsyncClient
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_fakes import HELLO, bearer, chat, made_keys
from tests.support.gateway.gateway_server import GatewayThread

NUM_WORDS = 4000
LONG = Script(words=["word "] * NUM_WORDS, pause_s=0.05)  # longer than anything below takes


@contextmanager
def running(settings: GatewaySettings, transport: FakeTransport) -> Iterator[GatewayThread]:
    with GatewayThread(
        settings, lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: transport)
    ) as gateway:
        yield gateway


def begun(gateway: GatewayThread, key: str) -> socket.socket:
    """A stream whose first bytes were read."""
    body = json.dumps({"model": "autoglm", "messages": HELLO, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


@pytest.mark.slow
def test_who_leaves_frees_a_slot_at_once_and_is_a_499_in_the_log(tmp_path: Path) -> None:
    keys, (key,) = made_keys("alice", more=", concurrency = 2")
    transport = FakeTransport(LONG)
    settings = GatewaySettings(keys=keys, access_log=str(tmp_path / "log"))
    with running(settings, transport) as gateway:

        def status() -> int:
            return httpx.get(f"{gateway.url}/v1/models", headers=bearer(key), timeout=60).status_code

        for _ in range(3):
            connections = [begun(gateway, key) for _ in range(2)]
            assert status() == 429
            for connection in connections:
                connection.close()
            give_up_at = time.monotonic() + 60  # less than half of what an answer takes
            while status() == 429 and time.monotonic() < give_up_at:
                time.sleep(0.01)
            assert status() == 200
    assert not transport.running
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    left = [line for line in lines if line["path"].endswith("completions")]
    assert [(line["status"], line["error"], line["tenant"]) for line in left] == [(499, "client_left", "alice")] * 6
    assert all(0 < line["completion_tokens"] < NUM_WORDS for line in left)


@pytest.mark.slow
def test_one_who_floods_takes_nothing_from_another() -> None:
    flood, (flood_key,) = made_keys("flood", more=", concurrency = 3, requests_per_minute = 600")
    calm, (calm_key,) = made_keys("calm", more=", requests_per_minute = 6000")
    transport = FakeTransport(Script(pause_s=0.01))
    with running(GatewaySettings(keys=flood + calm), transport) as gateway:
        began = time.monotonic()
        answers, refusals, calm_answers = asyncio.run(_flooded(gateway.url, flood_key, calm_key))
        seconds = time.monotonic() - began
    assert calm_answers == ["one two three"] * 60
    assert answers and answers <= 100 + 10 * seconds, "ten seconds' worth at once, and its rate for as long as it took"
    assert refusals and transport.max_running <= 3 + 3


async def _flooded(url: str, flood_key: str, calm_key: str) -> tuple[int, int, list[str]]:
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=flood_key, max_retries=0) as flooding,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=calm_key, max_retries=0) as calm,
    ):
        counts = {"answers": 0, "refusals": 0}
        flood = [asyncio.create_task(_pressing(flooding, counts)) for _ in range(12)]
        calm_answers = await asyncio.gather(*(_asking(calm, 20) for _ in range(3)))
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    return counts["answers"], counts["refusals"], [answer for one in calm_answers for answer in one]


async def _asking(client: openai.AsyncOpenAI, times: int) -> list[str]:
    return [await chat(client) for _ in range(times)]


async def _pressing(client: openai.AsyncOpenAI, counts: dict[str, int]) -> None:
    while True:
        try:
            await chat(client)
            counts["answers"] += 1
        except openai.RateLimitError:
            counts["refusals"] += 1
