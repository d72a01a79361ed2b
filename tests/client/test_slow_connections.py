"""A server behind a slow line is reached at the first try, as `Timeouts.connect` says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from autoglm_client import AsyncClient

from tests.support.server.silent_grpc import silent_server

DELAY_SECONDS = 0.25  # one way; HTTP/2 says something before the first call


@contextlib.asynccontextmanager
async def slow_line(port: int) -> AsyncIterator[tuple[int, list[int]]]:
    """To that port: its own, and one entry a connection."""
    connections, carried = list[int](), list[asyncio.Task[None]]()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(DELAY_SECONDS)
                writer.write(data)
        finally:
            writer.close()
            await writer.wait_closed()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(port)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        carried.extend(asyncio.create_task(carry(*way)) for way in ((reader, back), (there, writer)))

    line = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with line:
        yield line.sockets[0].getsockname()[1], connections
    for task in carried:
        task.cancel()
    await asyncio.gather(*carried, return_exceptions=True)


@pytest.mark.slow
async def test_one_attempt_has_the_time_that_a_slow_line_takes() -> None:
    with silent_server() as server:
        async with slow_line(server.port) as (port, connections), AsyncClient(f"127.0.0.1:{port}") as client:
            result = await client.generate("0")
            assert (result.text, result.attempts, len(connections)) == ("so it was", 1, 1)
