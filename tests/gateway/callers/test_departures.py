"""Clients that leave at any moment: their slots are free at once, nothing is logged as an error, others do not
notice."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client
from autoglm_gateway.errors import ApiError
from autoglm_gateway.routes.departures import cancel_on_disconnect
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script
from tests.support.gateway.gateway_server import GatewayThread, fake_client, logged_errors
from tests.support.server.raw_http import ask, connect, post

NUM_DEPARTURES = 400
AT_ONCE = 24  # more than there are slots
PATIENCE_SECONDS = 120.0
MIN_ANSWERS = 4  # of those beside whom others leave


async def test_work_that_is_done_first_is_what_comes() -> None:
    async def stays() -> dict[str, object]:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")

    async def work(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert await cancel_on_disconnect(stays, work(3)) == 3  # type: ignore[arg-type]


async def test_work_is_cancelled_where_the_client_leaves_first() -> None:
    cancelled = asyncio.Event()

    async def leaves() -> dict[str, object]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ApiError) as caught:
        await cancel_on_disconnect(leaves, work())  # type: ignore[arg-type]
    assert caught.value.status == 499 and cancelled.is_set()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"n": 3}, {"stream": True}, {"stream": True, "n": 3}])
@pytest.mark.parametrize("after_s", [0, 0.3])  # before the first token, and between tokens
def test_a_client_that_leaves_has_its_requests_cancelled(changes: dict[str, object], after_s: float) -> None:
    transport = FakeTransport(Script(words=["word "] * 4000, pause_s=0.1))
    make_client = partial(fake_client, transport=transport)
    with logged_errors() as errors, GatewayThread(GatewaySettings(), make_client) as gateway:
        with connect(gateway.port) as connection:
            connection.sendall(asked("Hello", **changes))
            begin_by = time.monotonic() + PATIENCE_SECONDS
            while len(transport.running) < changes.get("n", 1) and time.monotonic() < begin_by:  # type: ignore[operator]
                time.sleep(0.005)
            time.sleep(after_s)
            assert transport.running
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while transport.running and time.monotonic() < give_up_at:
            time.sleep(0.01)
        assert not transport.running and len(transport.cancelled) == changes.get("n", 1)
    assert not errors and not transport.aborted


@dataclass(frozen=True, slots=True)
class Departure:
    """`after_s`: from when the request was sent; `sent`: the part of the request that is sent; `abrupt`: with a
    reset."""

    request: bytes
    sent: float
    after_s: float
    reads: bool
    abrupt: bool


def departure(draw: random.Random) -> Departure:
    changes = {"stream": draw.random() < 0.6, "n": draw.choice([1, 1, 1, 2, 3]), "max_tokens": draw.randint(1, 200)}
    request = asked(f"Count from {draw.randint(1, 1000)} on." + " Go on." * draw.choice([0, 0, 20]), **changes)
    sent = 1.0 if draw.random() < 0.9 else draw.random()
    return Departure(
        request,
        sent,
        draw.choice([0.0, draw.uniform(0, 0.1), draw.uniform(0, 1.5)]),
        draw.random() < 0.5,
        draw.random() < 0.3,
    )


def leave(port: int, how: Departure) -> None:
    with connect(port) as connection, suppress(ConnectionError):
        connection.sendall(how.request[: int(how.sent * len(how.request))])
        leaves_at = time.monotonic() + how.after_s
        while (left := leaves_at - time.monotonic()) > 0:
            if not how.reads:
                time.sleep(left)
                break
            connection.settimeout(left)
            with suppress(TimeoutError):
                if not connection.recv(1 << 12):
                    break
        if how.abrupt:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def asked(text: str, **changes: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    body = {"model": "autoglm", "messages": messages, "temperature": 0, "ignore_eos": True, **changes}
    return post(json.dumps(body).encode())


@contextmanager
def others(port: int) -> Iterator[list[str]]:
    """The same answer, asked again and again beside what goes on."""
    answers: list[str] = []
    over = threading.Event()

    def ask_on() -> None:
        while not over.is_set() or len(answers) < MIN_ANSWERS:
            whole = json.loads(ask(port, asked("Name three colours.", max_tokens=24)).body)
            answers.append(whole["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            yield answers
        finally:
            over.set()
            for one in asking:
                one.result(10 * PATIENCE_SECONDS)


def busy(client: Client) -> dict[str, float]:
    engine = client.stats().engine
    return {name: engine[name] for name in ("running", "waiting", "slots_busy")}


@pytest.mark.server
@pytest.mark.parametrize("seed", [1])
@pytest.mark.slow
def test_departures_at_random_moments_leave_nothing_behind(server: LocalServer, seed: int) -> None:
    draw = random.Random(seed)
    departures = [departure(draw) for _ in range(NUM_DEPARTURES)]
    settings = GatewaySettings(servers=(server.grpc_url,))
    with logged_errors() as errors, Client(server.grpc_url) as client, GatewayThread(settings) as gateway:
        with others(gateway.port) as answers, ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(partial(leave, gateway.port), departures))
        left_at = time.monotonic()
        while any(busy(client).values()) and time.monotonic() < left_at + PATIENCE_SECONDS:
            time.sleep(0.02)
        took_s = time.monotonic() - left_at
        still = busy(client)
    print(f"{len(answers)} answers beside {NUM_DEPARTURES} departures; all free after {took_s:.2f} s")
    assert not any(still.values()), still
    assert not errors, errors[:3]
    assert len(answers) >= MIN_ANSWERS and len(set(answers)) == 1, answers
