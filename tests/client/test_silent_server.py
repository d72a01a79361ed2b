"""A server that is frozen shows, and one that is only silent is left in peace, without pings that Triton would count.
Here all of that is twenty times faster; tests/hostile/test_killed_processes.py has a real server as it is."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from autoglm_client import NO_RETRIES, AsyncClient, Client, ConnectionLost, Timeouts
from autoglm_client.transport import silence
from autoglm_client.transport.silence import ASK_SECONDS, SILENT_SECONDS, SilenceWatch  # as they are for users

from tests.support.server.silent_grpc import silent_server

FOREVER = Timeouts(first_token=None, between_tokens=None, total=None)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(silence, "ASK_SECONDS", 1.0)


def test_a_frozen_server_shows_within_a_minute() -> None:
    assert 1.1 * SILENT_SECONDS + 2 * ASK_SECONDS < 60


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_frozen_server_is_given_up(stream: bool) -> None:
    with silent_server() as server, Client(server.url, timeouts=FOREVER, retries=NO_RETRIES) as client:
        client.health()
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match="was silent for 1 s and then answered nothing"):
            if stream:
                list(client.stream("0"))
            else:
                client.generate("0")
        assert time.monotonic() - began >= 1


@pytest.mark.slow
def test_what_a_frozen_server_was_asked_is_asked_of_the_one_in_its_place() -> None:
    with silent_server() as server, Client(server.url, timeouts=FOREVER) as client:
        client.health()
        server.process.send_signal(signal.SIGSTOP)
        with silent_server() as other, Client([server.url, other.url], timeouts=FOREVER) as both:
            assert both.generate("0").endpoint == other.url
        server.process.kill()
        server.process.wait()
        with silent_server(port=server.port):
            assert client.generate("0").text == "so it was"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "busy", "ending"])
async def test_a_silent_server_that_is_there_is_waited_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine may be busy; what answers no call has to be given up as a caller before it answers the request.
    monkeypatch.setattr(silence, "ASK_SECONDS", 3.0 if how == "busy" else 60.0)
    count = 1 if how == "ending" else 3  # it takes no second one either
    with silent_server(how) as server:
        async with AsyncClient(server.url, timeouts=FOREVER, retries=NO_RETRIES) as client:
            answers = await asyncio.gather(*(client.generate("7") for _ in range(count)))
    assert [(answer.text, answer.attempts) for answer in answers] == [("so it was", 1)] * count


class Call:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def test_nobody_asks_a_server_that_speaks_and_nobody_looks_without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.05)
    asked = list[str]()

    async def is_there() -> bool:
        asked.append("is there")
        return False

    async def on_gone() -> None:
        asked.append("gone")

    watch, call, clock = SilenceWatch(is_there, on_gone), Call(), asyncio.get_running_loop().time
    with watch.of(call) as watched:
        for _ in range(20):
            watched.heard_at = clock() + 60  # a busy machine is no silence
            await asyncio.sleep(0.01)
        assert asked == [] and not watched.is_given_up
        watched.heard_at = clock() - 60
        while not watched.is_given_up:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
    assert call.cancelled and asked == ["is there", "gone"]
    await asyncio.sleep(0.05)
    assert watch._task is not None and watch._task.done()
