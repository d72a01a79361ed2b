"""A server at 80% of its capacity for long, with clients as they are: some cancel, some err, some read slowly."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import takewhile

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import AsyncClient

from autoglm_perf.load.arrivals import poisson_times
from autoglm_perf.load.load import Question, ask_all
from autoglm_perf.load.measures import Percentiles
from autoglm_perf.load.pauses import PauseWatch
from autoglm_perf.soak.traffic import SHARES, Asker, Record, draw_task, make_pool
from autoglm_perf.soak.verdict import Soaked, is_idle, panels, unmet
from autoglm_perf.soak.watch import Sample, Watch
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.equality import first_answers
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric, Published
from autoglm_perf.system.processes import MEBIBYTE, CpuUse, cpu_use, processes_of

_RIGHT = Metric("answered right", "%")
_MEAN = Metric("latency mean", "ms", higher_is_better=False)
_P95 = Metric("latency p95", "ms", higher_is_better=False)
_P99 = Metric("latency p99", "ms", higher_is_better=False)
_PAUSE = Metric("longest pause", "ms", higher_is_better=False)
_GROWTH = Metric("memory growth", "%", higher_is_better=False)
_LOAD = 0.8
_CLOSED = 32  # requests under way while the capacity is measured: twice the slots
_SETTLE_SECONDS = 60.0
DESCRIPTION = Description(
    "soak",
    "Soak",
    (
        "At 80% of capacity, with cancels, bad inputs and slow readers, every valid request is answered right, "
        "memory stays within 2% after the first minute, and no pause exceeds a step by 250 ms."
    ),
    (_RIGHT, _MEAN, _P95, _P99, _PAUSE, _GROWTH),
    (Published("-", "99.98% served, mean 12 ms, pauses <= 45 ms, memory flat"),),
)


@dataclass(frozen=True, slots=True)
class SoakPlan:
    pool: list[Question]
    right: dict[str, str]
    seconds: float
    seed: int


def run(context: Context) -> Found:
    seed = next(context.seeds)
    seconds = 60.0 * min(context.soak_minutes, 0.5 if context.quick else float("inf"))
    pool = make_pool(context.tokenizer, context.size(4, 1), seed)
    with context.server() as server:
        context.say(f"the right answers to {len(pool)} prompts, one at a time")
        right = first_answers(ask_all(server.grpc_url, pool, 1))
        plan = SoakPlan(pool, right, seconds, seed)
        capacity = asyncio.run(_capacity(server, plan, context.size(20, 6)))
        context.say(f"capacity {capacity:.1f} requests/s; {_LOAD:.0%} of it for {seconds / 60:g} minutes")
        with cpu_use(server) as use:
            soaked, watch = asyncio.run(_soak(server, plan, _LOAD * capacity))
    left_over = sum(region.exists() for region in watch.regions)
    return _found(plan, replace(soaked, left_over=left_over), watch, capacity, use)


async def _capacity(server: LocalServer, plan: SoakPlan, seconds: float) -> float:
    """Requests a second of the same mixture, closed loop."""
    draw, done = random.Random(plan.seed + 1), list[Record]()
    began = time.monotonic()

    async def work(asker: Asker) -> None:
        while time.monotonic() < began + seconds:
            done.append(await asker.perform(draw_task(plan.pool, draw), time.monotonic()))

    async with AsyncClient(server.grpc_url) as client:
        asker = Asker(client, plan.right, PauseWatch())
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLOSED):
                group.create_task(work(asker))
    return sum(record.finished <= began + seconds for record in done) / seconds


async def _soak(server: LocalServer, plan: SoakPlan, rate: float) -> tuple[Soaked, Watch]:
    records, pauses, done = list[Record](), PauseWatch(), asyncio.Event()
    async with AsyncClient(server.grpc_url) as client, AsyncClient(server.grpc_url) as observer:
        watch = Watch(observer, processes_of(server), 2.0 if plan.seconds > 100 else 0.5)
        watching = asyncio.create_task(watch.run(done))
        began = time.monotonic()
        await _ask_openly(Asker(client, plan.right, pauses), plan, rate, began, records)
        done.set()
        await watching
        last = await _settled(watch)
    settle = min(_SETTLE_SECONDS, plan.seconds / 3)
    kept = [sample for sample in watch.samples if sample.at >= began]
    return Soaked(began, began + settle, records, kept, pauses.longest_by_second, last, 0), watch


async def _ask_openly(asker: Asker, plan: SoakPlan, rate: float, began: float, records: list[Record]) -> None:
    """Sends when a request is due, whatever is under way; returns when all have ended."""
    draw = random.Random(plan.seed + 2)

    async def perform(due: float) -> None:
        records.append(await asker.perform(draw_task(plan.pool, draw), due))

    async with asyncio.TaskGroup() as group:
        for at in takewhile(lambda at: at < plan.seconds, poisson_times(rate, plan.seed)):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            group.create_task(perform(began + at))


async def _settled(watch: Watch, seconds: float = 5.0) -> Sample:
    """A sample once nothing is under way, or the last one within `seconds`: cancels take a moment."""
    deadline = time.monotonic() + seconds
    while True:
        sample = await watch.look()
        if is_idle(sample) or time.monotonic() > deadline:
            return sample
        await asyncio.sleep(0.25)


def _found(plan: SoakPlan, soaked: Soaked, watch: Watch, capacity: float, use: CpuUse) -> Found:
    latency = Percentiles.of(soaked.latencies)
    values = {
        _RIGHT.name: (100 * soaked.right_share,),
        _MEAN.name: (1e3 * statistics.fmean(soaked.latencies or [float("nan")]),),
        _P95.name: (latency.p95,),
        _P99.name: (latency.p99,),
        _PAUSE.name: (1e3 * soaked.longest_pause_s,),
        _GROWTH.name: (100 * soaked.growth(lambda sample: sample.memory),),
    }
    shares = ", ".join(f"{share}% {kind.value}" for kind, share in SHARES.items())
    settings = {
        "load": (
            f"{_LOAD:.0%} of {capacity:.1f} requests/s, which a closed loop of {_CLOSED} made of the same "
            "mixture; Poisson, open loop"
        ),
        "duration": f"{plan.seconds / 60:g} minutes",
        "mixture": shares,
        "answers": (
            f"{len(plan.pool)} prompts of 16 to 256 tokens, 8 to 128 out, greedy; computed one at a time before, "
            "compared byte for byte"
        ),
    }
    samples = f"{len(soaked.valid):,} valid requests of {len(soaked.records):,}"
    arms = (Arm(f"{_LOAD:.0%} of capacity", values),)
    return Found(
        arms,
        settings,
        samples,
        (*_remarks(soaked, watch), *_cpu(soaked, use)),
        unmet=unmet(soaked),
        panels=panels(soaked),
    )


def _remarks(soaked: Soaked, watch: Watch) -> tuple[str, ...]:
    kinds = Counter((record.kind.value, record.wrong is None) for record in soaked.records)
    outcomes = ", ".join(
        f"{kind} {kinds[kind, True]:,} as they should" + (f", {n:,} not" if (n := kinds[kind, False]) else "")
        for kind in dict.fromkeys(kind for kind, _ in kinds)
    )
    after = [sample for sample in soaked.samples if sample.at >= soaked.settled]
    settled = after[0]
    memory = [sample.memory / MEBIBYTE for sample in after]
    with_files = [sample.with_files / MEBIBYTE for sample in after]
    return (
        f"Outcomes: {outcomes}.",
        f"Memory that all processes allocated: {settled.memory / MEBIBYTE:,.0f} MiB after "
        f"{soaked.settled - soaked.began:.0f} s, then {min(memory):,.0f} ... {max(memory):,.0f}. With "
        "pages of files (PSS), of which more count as the server's when no other program maps them: "
        f"{settled.with_files / MEBIBYTE:,.0f} MiB, then {min(with_files):,.0f} ... "
        f"{max(with_files):,.0f}.",
        (
            f"A step took {1e3 * soaked.step_s:.1f} ms; pauses are over all streams that are computed. "
            f"{_longest_pause(soaked, watch)}"
        ),
        f"Shared memory: {settled.shared_files} regions; {soaked.left_over} outlived the server.",
        (
            "Clients that vanish without a word are not in the mixture: Triton 2.51 counts their ensemble "
            "requests as in flight for ever."
        ),
    )


def _longest_pause(soaked: Soaked, watch: Watch) -> str:
    """With what the load generator itself may have added to it."""
    second = max(soaked.pauses, key=lambda at: soaked.pauses[at], default=int(soaked.began))
    lag = max(watch.lag_by_second.get(at, 0.0) for at in (second - 1, second))
    return (
        f"The longest one was {second - soaked.began:.0f} s after the beginning; the load generator's own loop "
        f"was late by up to {1e3 * lag:.0f} ms then."
    )


def _cpu(soaked: Soaked, use: CpuUse) -> tuple[str, ...]:
    """Pauses and latencies on a machine that others use say little: the reader must see it."""
    others = "" if use.others is None else f" Other programs took {use.others:.0%} of the machine's CPU meanwhile."
    return (use.line(max(1, len(soaked.records))) + others,)
