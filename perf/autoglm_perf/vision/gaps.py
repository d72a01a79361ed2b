"""Gaps between the tokens of running streams, alone and while screens are encoded beside them."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from autoglm_client import AsyncClient

from autoglm_perf.load.load import Question, ask, greedy
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.suite.arms import figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Metric

from .chat import ask_all

GAP_50 = Metric("gap p50", "ms", higher_is_better=False)
GAP_99 = Metric("gap p99", "ms", higher_is_better=False)
NUM_STREAMS = 4
_TOKENS = 512  # of each answer, one after another as long as it takes
_PROMPT = "Tell me what the phone shows, from its top to its end."


def gaps(context: Context, name: str, server_url: str, gateway_url: str, draw: Callable[[], bytes]) -> Iterator[Arm]:
    """`draw`: the body of a request about a screen; they are asked one after another, by a process of its own, which
    takes no time of the one that watches the streams."""
    found: dict[str, list[RunFigures]] = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(ask_all, gateway_url, [[draw()]], 1).result()  # it has imported what it needs
        for _ in context.repeated(f"{name}: gaps of {NUM_STREAMS} streams, with screens beside them and without"):
            chats = [[draw()] for _ in range(context.size(40, 2))]
            asked, began = pool.submit(ask_all, gateway_url, chats, 1), time.monotonic()
            beside = asyncio.run(_stream_until(server_url, asked.done))
            figures(f"{name}: screens beside streams", 1, asked.result())  # none of them may have failed
            alone = asyncio.run(_stream_until(server_url, partial(_is_past, 2 * time.monotonic() - began)))
            for label, timings in (("alone", alone), ("screens beside them", beside)):
                found.setdefault(label, []).append(figures(label, NUM_STREAMS, timings))
    for label, runs in found.items():
        yield _arm(f"{name}, {NUM_STREAMS} streams, {label}", runs)


def _is_past(moment: float) -> bool:
    return time.monotonic() > moment


async def _stream_until(url: str, is_over: Callable[[], bool]) -> list[RequestTiming]:
    timings: list[RequestTiming] = []

    async def work(client: AsyncClient) -> None:
        while True:
            timings.append((await ask(client, Question(_PROMPT, greedy(_TOKENS, cache="bypass")))).timing)
            if is_over():
                return

    async with AsyncClient(url) as client, asyncio.TaskGroup() as workers:
        for _ in range(NUM_STREAMS):
            workers.create_task(work(client))
    return timings


def _arm(label: str, runs: Sequence[RunFigures]) -> Arm:
    latencies = [run.inter_token_latency_ms for run in runs]
    return Arm(
        label, {GAP_50.name: tuple(one.p50 for one in latencies), GAP_99.name: tuple(one.p99 for one in latencies)}
    )
