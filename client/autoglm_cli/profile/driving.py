"""Drives a server with a constant number of requests in flight, and samples it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from autoglm_client.async_client import AsyncClient
from autoglm_client.exceptions import AutoGLMError, CannotConnectError
from autoglm_client.transport.time_limit import LimitPassed

from autoglm_cli.procfs import ProcFs

from .figures import STAGES
from .gpu import GpuMeter
from .host import read_host
from .records import EngineState, Host, HostState, RequestRecord, Run, Sample
from .workload import PromptRequest

SAMPLE_SECONDS = 0.25
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Load:
    """Ends after `requests` requests or `duration` seconds, whichever is first; what is under way then is finished."""

    concurrency: int
    requests: int | None
    duration: float | None


class Probe:
    """Takes samples. Everything that blocks runs in a thread, beside the requests."""

    def __init__(self, client: AsyncClient, host: Host, proc: ProcFs, gpu: GpuMeter | None) -> None:
        self._client = client
        self._host = host
        self._proc = proc
        self._gpu = gpu

    async def sample(self, clock: Clock) -> Sample:
        (at, host, gpu), engine = await asyncio.gather(asyncio.to_thread(self._read, clock), self._engine())
        return Sample(at, engine, host, gpu)

    def _read(self, clock: Clock) -> tuple[float, HostState, float | None]:
        """With the moment of the host's counters: rates come from them, and the engine may answer later."""
        return clock(), read_host(self._proc, self._host), self._gpu.utilisation() if self._gpu else None

    async def _engine(self) -> EngineState:
        try:
            stats = (await self._client.stats()).engine
        except AutoGLMError:
            return EngineState()
        return engine_state(stats)


def engine_state(stats: dict[str, object]) -> EngineState:
    def count(name: str) -> int | None:
        value = stats.get(name)
        return value if isinstance(value, int) else None

    slots = [count(f"slots_{state}") for state in ("free", "busy", "retained")]
    total = sum(number for number in slots if number is not None)
    return EngineState(count("waiting"), slots[1], None if None in slots else total)


async def drive(
    client: AsyncClient,
    asked: Iterator[PromptRequest],
    load: Load,
    probe: Callable[[Clock], Awaitable[Sample]],
    host: Host,
    on_answer: Callable[[RequestRecord], None],
) -> Run:
    """Raises `CannotConnectError` where the server is gone; every other failure of a request is recorded."""
    began = time.monotonic()

    def clock() -> float:
        return time.monotonic() - began

    samples = [await probe(clock)]
    done = asyncio.Event()
    sampling = asyncio.create_task(_sample_on(probe, clock, samples, done))
    feed = _Feed(asked, load, clock)
    workers = [asyncio.create_task(_work(client, feed, on_answer)) for _ in range(load.concurrency)]
    try:
        answered = await _all_of(workers)
    finally:
        seconds = clock()
        done.set()
        await sampling
    samples.append(await probe(clock))
    records = sorted(itertools.chain(*answered), key=lambda record: record.started)
    return Run(load.concurrency, seconds, feed.last_at, tuple(records), tuple(samples), host)


async def _all_of(workers: list[asyncio.Task[list[RequestRecord]]]) -> list[list[RequestRecord]]:
    """Their results. What one of them raises, once the others have ended, too: it cancels them."""
    try:
        return await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)


class _Feed:
    """Hands out what to ask until the load ends."""

    def __init__(self, asked: Iterator[PromptRequest], load: Load, clock: Clock) -> None:
        self._asked = asked if load.requests is None else itertools.islice(asked, load.requests)
        self._ends_at = load.duration if load.duration is not None else float("inf")
        self.clock = clock
        self.last_at = 0.0

    def next(self) -> PromptRequest | None:
        if self.clock() >= self._ends_at:
            return None
        taken = next(self._asked, None)
        if taken is not None:
            self.last_at = self.clock()
        return taken


async def _work(client: AsyncClient, feed: _Feed, on_answer: Callable[[RequestRecord], None]) -> list[RequestRecord]:
    records = []
    while (asked := feed.next()) is not None:
        records.append(await _ask(client, asked, feed.clock))
        on_answer(records[-1])
    return records


async def _ask(client: AsyncClient, asked: PromptRequest, clock: Clock) -> RequestRecord:
    started = clock()
    try:
        async with client.stream(asked.prompt, asked.options) as stream:
            arrivals = [clock() async for _ in stream]
    except CannotConnectError:
        raise
    except AutoGLMError as error:
        return RequestRecord(started, clock(), error=str(error))
    result = stream.result
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    return RequestRecord(
        started=started,
        finished=clock(),
        first_token=arrivals[0],
        prompt_tokens=result.usage.prompt_tokens,
        completion_tokens=result.usage.completion_tokens,
        cached_tokens=result.usage.cached_tokens,
        stages_ms={name: getattr(result.stages, f"{name}_ms") for name in STAGES},
        longest_gap_ms=1000 * max(gaps, default=0.0),
    )


async def _sample_on(
    probe: Callable[[Clock], Awaitable[Sample]], clock: Clock, samples: list[Sample], done: asyncio.Event
) -> None:
    """At a fixed pace; where a sample takes longer, the next follows at once. A sample is never cancelled: its question
    to the engine is a gRPC call that must be read to its end."""
    due = clock()
    while not done.is_set():
        due = max(due + SAMPLE_SECONDS, clock())
        with contextlib.suppress(LimitPassed):
            await asyncio.wait_for(done.wait(), due - clock())
            return
        samples.append(await probe(clock))


def first_errors(records: tuple[RequestRecord, ...]) -> list[tuple[str, int]]:
    """What went wrong and how often, the most frequent first."""
    return Counter(record.error for record in records if record.error is not None).most_common()
