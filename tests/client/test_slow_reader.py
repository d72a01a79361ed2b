"""A reader that stops reading costs bounded memory, and the others nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient, Client

ROOT = Path(__file__).parents[2]
NUM_READERS, MAX_TOKENS = 8, 600
MEGABYTE = 1 << 20


def stalled_stream(server: LocalServer) -> socket.socket:
    """An HTTP stream that is asked for and never read, with a small receive buffer."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", server.http_port))
    body = f'{{"text_input": "Once upon a time", "stream": true, "max_tokens": {MAX_TOKENS}, "ignore_eos": true}}'
    head = f"POST /v2/models/autoglm/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    reader.sendall((head + body).encode())
    return reader


def memory_of(server: LocalServer) -> int:
    assert server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return sum(process.memory_full_info().uss for process in family)


@pytest.mark.server
def test_readers_that_stop_reading(server: LocalServer) -> None:
    with Client(server.grpc_url) as client:
        expected = client.generate("The sky is", max_tokens=16, temperature=0.0).text
        client.generate("warm", max_tokens=MAX_TOKENS, ignore_eos=True)
        before, readers = memory_of(server), [stalled_stream(server) for _ in range(NUM_READERS)]
        try:
            deadline = time.monotonic() + 600
            busy, answers = 1, 0
            while busy and time.monotonic() < deadline:
                assert client.generate("The sky is", max_tokens=16, temperature=0.0).text == expected
                answers += 1
                busy = client.stats().engine["slots_busy"]
            assert not busy, "a reader that does not read holds its slot"
            assert answers > 3
            # A response is about a kilobyte; with their key/value slots, streams that nobody reads stay far below this.
            grown = memory_of(server) - before
            assert grown < NUM_READERS * 24 * MEGABYTE, f"{grown / MEGABYTE:.0f} MiB more"
        finally:
            for reader in readers:
                reader.close()


# ---- over gRPC, one channel for all


NUM_OTHERS, STOPPED_TOKENS = 15, 500
LONG = {"max_tokens": STOPPED_TOKENS, "temperature": 0.0, "ignore_eos": True}


async def answers_of_others(client: AsyncClient) -> tuple[list[str], float]:
    """Their texts, and the seconds that all of them took."""
    started = time.monotonic()
    streams = [client.stream(f"{i} is", max_tokens=40, temperature=0.0, ignore_eos=True) for i in range(NUM_OTHERS)]
    results = await asyncio.gather(*(stream.read_all() for stream in streams))
    return [result.text for result in results], time.monotonic() - started


@pytest.mark.server
async def test_a_stopped_grpc_reader_costs_the_others_on_its_channel_nothing(server: LocalServer) -> None:
    async with AsyncClient(server.grpc_url) as client:
        expected = (await client.generate("Once upon a time", **LONG)).text
        alone, seconds_alone = await answers_of_others(client)
        before = memory_of(server)
        async with client.stream("Once upon a time", **LONG) as stopped:
            texts = [(await anext(stopped)).text]
            beside, seconds_beside = await answers_of_others(client)
            assert beside == alone
            # It computes beside them and has a sixteenth of the batch: many times the time would be another's doing.
            assert seconds_beside < 5 * seconds_alone + 10, f"{seconds_beside:.1f} s instead of {seconds_alone:.1f}"
            assert stopped._call is not None and len(stopped._call._unread) <= 64
            await until_idle(client)
            grown = memory_of(server) - before
            assert grown < 24 * MEGABYTE, f"{grown / MEGABYTE:.0f} MiB more"
            texts += [piece.text async for piece in stopped]
        assert "".join(texts) == expected, "what was not read in time is not lost"


@pytest.mark.server
async def test_a_reader_at_a_piece_a_second_frees_its_slot_long_before_it_has_read_all(server: LocalServer) -> None:
    async with AsyncClient(server.grpc_url) as client:
        async with client.stream("Once upon a time", **LONG) as stream:
            for _ in range(3):
                last = await anext(stream)
                await asyncio.sleep(1.0)
            await until_idle(client)
            assert last.usage.completion_tokens < STOPPED_TOKENS / 4
            # What it reads late was gathered meanwhile, not left out.
            assert len([piece async for piece in stream]) < STOPPED_TOKENS
        assert stream.result.usage.completion_tokens == STOPPED_TOKENS


async def until_idle(client: AsyncClient) -> None:
    async with asyncio.timeout(600):
        while (await client.stats()).engine["slots_busy"]:
            await asyncio.sleep(0.05)
