"""The load generator: many streams at once through `AsyncClient`, each timed as a user sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from autoglm_client import AsyncClient, AutoGLMError

from .measures import RequestTiming
from .workload import Workload


def measure_load(
    url: str, workload: Workload, concurrency: int, progress: Callable[[int], None] | None = None
) -> list[RequestTiming]:
    """Ask every prompt of `workload`, `concurrency` at any time; failed requests come back with their error."""
    return asyncio.run(_measure(url, workload, concurrency, progress or (lambda count: None)))


async def _measure(
    url: str, workload: Workload, concurrency: int, progress: Callable[[int], None]
) -> list[RequestTiming]:
    prompts, timings = iter(workload.prompts), list[RequestTiming]()
    async with AsyncClient(url) as client, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(_work(client, prompts, workload.max_tokens, timings, progress))
    return timings


async def _work(
    client: AsyncClient,
    prompts: Iterator[str],
    max_tokens: int,
    timings: list[RequestTiming],
    progress: Callable[[int], None],
) -> None:
    for prompt in prompts:
        timings.append(await _timed_stream(client, prompt, max_tokens))
        progress(1)


async def _timed_stream(client: AsyncClient, prompt: str, max_tokens: int) -> RequestTiming:
    started, error = time.monotonic(), None
    arrivals: list[tuple[float, int]] = []  # when, completion tokens so far
    try:
        async with client.stream(
            prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True, cache="bypass"
        ) as stream:
            async for piece in stream:
                arrivals.append((time.monotonic(), piece.usage.completion_tokens))  # noqa: PERF401 - kept on errors
    except AutoGLMError as failure:
        error = str(failure)
    arrivals = arrivals or [(time.monotonic(), 0)]
    return RequestTiming(started, arrivals[0][0], arrivals[-1][0], arrivals[-1][1], tuple(token_gaps(arrivals)), error)


def token_gaps(arrivals: list[tuple[float, int]]) -> Iterator[float]:
    """Tokens that came in one response share its gap evenly."""
    for (before, had), (now, has) in pairwise(arrivals):
        for _ in range(has - had):
            yield (now - before) / (has - had)
