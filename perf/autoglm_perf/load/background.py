"""Streams that generate without a pause while something else is measured."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autoglm_client import AsyncClient

from .load import greedy

_WARM_SECONDS = 1.5  # until all prompts are computed and every stream decodes
_MAX_TOKENS = 512


@contextmanager
def generating(url: str, num_streams: int) -> Iterator[None]:
    """`num_streams` greedy answers of 512 tokens under way at any time, none of them from a cache. Leaving cancels
    them. Raises what a stream raised."""
    if num_streams == 0:
        yield
        return
    stop, failures = threading.Event(), list[BaseException]()

    def keep_on() -> None:
        try:
            asyncio.run(_all_streams(url, num_streams, stop))
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=keep_on, name="generating", daemon=True)
    thread.start()
    time.sleep(_WARM_SECONDS)
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


async def _all_streams(url: str, num_streams: int, stop: threading.Event) -> None:
    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        for number in range(num_streams):
            group.create_task(_stream_on(client, number, stop))


async def _stream_on(client: AsyncClient, number: int, stop: threading.Event) -> None:
    for turn in itertools.count():
        options = greedy(_MAX_TOKENS, cache="bypass")
        async with client.stream(f"Tale {turn} of stream {number}:", options) as stream:
            async for _ in stream:
                if stop.is_set():
                    return
