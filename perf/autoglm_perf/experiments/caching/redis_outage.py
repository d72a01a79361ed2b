"""The Redis tier of the response cache with Redis up, hanging and killed, beside a server without it."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from autoglm_client import AsyncClient, AutoGLMError, Client

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.system.redis_server import RedisServer, is_installed, running_redis

_METRICS = (REQUESTS, LATENCY_95, LATENCY)
_CONCURRENCY, _MAX_TOKENS, _NUM_PROMPTS = 16, 16, 48
_FORGETFUL = {"AUTOGLM_CACHE_BYTES": "1024"}  # answers come from Redis or from a slot, not from memory
_WAIT_SECONDS = 60.0
DESCRIPTION = Description(
    "redis-outage",
    "Redis away",
    "A server whose Redis hangs or is killed answers as one without Redis does; nobody sees an error or waits for it.",
    _METRICS,
)


def run(context: Context) -> Found:
    if not is_installed():
        raise CannotRun("redis-server is not installed; `make test` installs it")
    prompts = exact_prompts(context.tokenizer, _NUM_PROMPTS, 32, next(context.seeds))
    with context.server(_FORGETFUL) as server:
        _measure(context, "warm-up", server.grpc_url, prompts)
        alone = _arm(context, "no Redis", server.grpc_url, prompts)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_redis(Path(folder)) as redis,
        context.server({**_FORGETFUL, "AUTOGLM_REDIS_URL": redis.url}) as server,
        Client(server.grpc_url) as client,
    ):
        outages = _outages(context, redis, server.grpc_url, client, prompts)
        counted = {name: client.stats().engine[f"cache_redis_{name}"] for name in ("hits", "errors", "skipped")}
    settings = {
        "requests": f"{_NUM_PROMPTS} prompts of 32 tokens at random, {_MAX_TOKENS} out, {_CONCURRENCY} in flight",
        "cache in memory": "1 KiB, so that Redis or a slot answers",
        "redis_timeout_ms, redis_retry_seconds": "50, 1",
    }
    remark = (
        f"Lookups with Redis over all runs: {counted['hits']} hits, {counted['errors']} failed, "
        f"{counted['skipped']} skipped. No request failed."
    )
    return Found((alone, *outages), settings, f"{_count(context)} requests", (remark,))


def _outages(context: Context, redis: RedisServer, url: str, client: Client, prompts: Sequence[str]) -> tuple[Arm, ...]:
    _wait_up(client)
    _measure(context, "warm-up", url, prompts)

    @contextmanager
    def away(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
        begin()
        try:
            yield
        finally:
            end()
            _wait_up(client)

    return (
        _arm(context, "Redis up", url, prompts),
        _arm(context, "Redis hanging", url, prompts, lambda: away(redis.freeze, redis.thaw)),
        _arm(context, "Redis killed", url, prompts, lambda: away(redis.kill, redis.start)),
    )


def _arm(
    context: Context,
    label: str,
    url: str,
    prompts: Sequence[str],
    state: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Arm:
    runs = []
    for _ in context.repeated(label):
        with state():
            runs.append(figures(label, _CONCURRENCY, _measure(context, label, url, prompts)))
    return arm(label, runs, _METRICS)


def _count(context: Context) -> int:
    return context.size(300, 64)


def _measure(context: Context, label: str, url: str, prompts: Sequence[str]) -> list[RequestTiming]:
    draw = random.Random(label)
    return asyncio.run(_ask_all(url, iter(draw.choices(prompts, k=_count(context)))))


async def _ask_all(url: str, prompts: Iterator[str]) -> list[RequestTiming]:
    timings: list[RequestTiming] = []

    async def work(client: AsyncClient) -> None:
        timings.extend([await _ask(client, prompt) for prompt in prompts])  # which the workers share

    async with AsyncClient(url) as client, asyncio.TaskGroup() as workers:
        for _ in range(_CONCURRENCY):
            workers.create_task(work(client))
    return timings


async def _ask(client: AsyncClient, prompt: str) -> RequestTiming:
    started, error = time.monotonic(), None
    try:
        await client.generate(prompt, max_tokens=_MAX_TOKENS, temperature=0.0, ignore_eos=True)
    except AutoGLMError as failure:
        error = str(failure)
    now = time.monotonic()
    return RequestTiming(started, now, now, _MAX_TOKENS, (), error)


def _wait_up(client: Client) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while not client.stats().engine["cache_redis_up"]:
        assert time.monotonic() < until, "the server does not use Redis"
        time.sleep(0.05)
