"""A connection for each call against one that is kept, plain and compressed; answers of one token, so that calls are
what costs."""

from __future__ import annotations

import asyncio
import time

from autoglm_client import AsyncClient

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Published

_METRICS = (REQUESTS, LATENCY, LATENCY_95)
_PROMPT = "One, two, three,"
DESCRIPTION = Description(
    "connections",
    "Connections",
    "One long-lived HTTP/2 channel answers more calls a second than a new connection for each.",
    _METRICS,
    (Published("85 ms, 1x", "12 ms, 6.8x"),),
)


def run(context: Context) -> Found:
    count = context.size(200, 20)
    with context.server() as server:
        asyncio.run(_pooled(server.grpc_url, 5, gzip=False))
        arms = tuple(
            _arm(context, server.grpc_url, label, count)
            for label in ("a new connection each", "pooled", "pooled, gzip")
        )
    return Found(arms, {"call": "4-word prompt, 1 token, one call at a time, loopback"}, f"{count} calls")


def _arm(context: Context, url: str, label: str, count: int) -> Arm:
    runs = []
    for _ in context.repeated(label):
        work = _fresh(url, count) if label.startswith("a new") else _pooled(url, count, gzip=label.endswith("gzip"))
        runs.append(figures(label, 1, asyncio.run(work)))
    return arm(label, runs, _METRICS)


async def _fresh(url: str, count: int) -> list[RequestTiming]:
    timings = []
    for _ in range(count):
        started = time.monotonic()
        async with AsyncClient(url) as client:
            await client.generate(_PROMPT, max_tokens=1, temperature=0.0, ignore_eos=True, cache="bypass")
        timings.append(_timing(started))
    return timings


async def _pooled(url: str, count: int, *, gzip: bool) -> list[RequestTiming]:
    timings = []
    async with AsyncClient(url, gzip=gzip) as client:
        for _ in range(count):
            started = time.monotonic()
            await client.generate(_PROMPT, max_tokens=1, temperature=0.0, ignore_eos=True, cache="bypass")
            timings.append(_timing(started))
    return timings


def _timing(started: float) -> RequestTiming:
    now = time.monotonic()
    return RequestTiming(started, now, now, 1, ())
