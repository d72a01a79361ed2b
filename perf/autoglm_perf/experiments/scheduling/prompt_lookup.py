"""Drafts by prompt lookup off, by themselves (auto) and always: answers that copy from their prompt, and answers that
do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from autoglm_client import AsyncClient, Message

from autoglm_perf.load.copying import COPYING, FREE, chats
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.suite.arms import LATENCY, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric

_ACCEPTED = Metric("drafts accepted", "%")
_DRAFTED = Metric("drafted for each token", "")
_MODES = ("off", "auto", "on")
_TASKS = {"copying": COPYING, "free": FREE}
_CONCURRENCIES = (1, 4, 16)
_MAX_TOKENS = 128
DESCRIPTION = Description(
    "prompt-lookup",
    "Drafts by prompt lookup",
    (
        "Answers that copy from their prompt come faster with one request in flight and with four, answers that "
        "do not lose nothing, and every answer is the same."
    ),
    (TOKENS, LATENCY, _ACCEPTED, _DRAFTED),
)


@dataclass(slots=True)
class Side:
    """One mode at one load: what its runs gave."""

    runs: list[RunFigures] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    num_tokens: int = 0
    texts: list[str] = field(default_factory=list)


def run(context: Context) -> Found:
    """The modes take turns, each with a server of its own, and are asked the same; the next time other prompts."""
    loads = [(kind, concurrency) for kind in _TASKS for concurrency in _CONCURRENCIES]
    sides = {(*load, mode): Side() for load in loads for mode in _MODES}
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(context.server({"AUTOGLM_SPECULATION": mode})) for mode in _MODES}
        for mode in _MODES:
            asyncio.run(_ask_all(servers[mode].grpc_url, chats(FREE, 4, 0), 4))
        for number in context.repeated("modes"):
            for kind, concurrency in loads:
                prompts = chats(_TASKS[kind], _count(context, concurrency), next(context.seeds))
                for mode in (*_MODES[number % 3 :], *_MODES[: number % 3]):
                    _measure(servers[mode].grpc_url, prompts, concurrency, sides[kind, concurrency, mode])
    arms = tuple(_arm(_label(*key), side) for key, side in sides.items())
    settings = {
        "copying": (
            "edit code, JSON of a record, correct a text, repeat a text; SmolLM2 follows such requests more or "
            "less well"
        ),
        "free": "questions and poems",
        "requests": f"greedy, whole answers of at most {_MAX_TOKENS} tokens, up to their own end",
    }
    baselines = {_label(*key): _label(key[0], key[1], "off") for key in sides}
    samples = (
        f"{_count(context, 1)} requests at one in flight, {_count(context, 4)} at four, {_count(context, 16)} at 16"
    )
    return Found(arms, settings, samples, (_compared(sides),), baselines)


def _label(kind: str, concurrency: int, mode: str) -> str:
    return f"{kind}, {concurrency} in flight: {mode}"


def _count(context: Context, concurrency: int) -> int:
    return context.size({1: 12, 4: 24, 16: 64}[concurrency], 4)


def _measure(url: str, prompts: Sequence[str], concurrency: int, side: Side) -> None:
    timings, texts, counted = asyncio.run(_ask_all(url, prompts, concurrency))
    side.runs.append(figures("", concurrency, timings))
    side.num_tokens += sum(timing.num_tokens for timing in timings)
    side.drafted += counted["tokens_drafted"]
    side.accepted += counted["drafts_accepted"]
    side.texts += texts


async def _ask_all(
    url: str, prompts: Sequence[str], concurrency: int
) -> tuple[list[RequestTiming], list[str], dict[str, int]]:
    """(timings, texts in the order of the prompts, what the engine counted meanwhile)."""
    texts, timings = [""] * len(prompts), list[RequestTiming]()
    waiting = iter(enumerate(prompts))
    async with AsyncClient(url) as client:
        before = (await client.stats()).engine
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(_work(client, waiting, texts, timings))
        after = (await client.stats()).engine
    return timings, texts, {name: int(after[name] - before[name]) for name in ("tokens_drafted", "drafts_accepted")}


async def _work(
    client: AsyncClient, prompts: Iterator[tuple[int, str]], texts: list[str], timings: list[RequestTiming]
) -> None:
    for number, prompt in prompts:
        started = time.monotonic()
        answer = await client.generate(
            [Message("user", prompt)], max_tokens=_MAX_TOKENS, temperature=0.0, cache="bypass"
        )
        now = time.monotonic()
        texts[number] = answer.text
        timings.append(RequestTiming(started, now, now, answer.usage.completion_tokens, ()))


def _arm(label: str, side: Side) -> Arm:
    values = dict(arm(label, side.runs, (TOKENS, LATENCY)).values)
    values[_DRAFTED.name] = (side.drafted / side.num_tokens,)
    if side.drafted:
        values[_ACCEPTED.name] = (100 * side.accepted / side.drafted,)
    return Arm(label, values)


def _compared(sides: Mapping[tuple[str, int, str], Side]) -> str:
    pairs = [
        (plain, text)
        for (kind, concurrency, mode), side in sides.items()
        if mode != "off"
        for plain, text in zip(sides[kind, concurrency, "off"].texts, side.texts, strict=True)
    ]
    same = sum(plain == text for plain, text in pairs)
    return f"{same} of {len(pairs)} answers with drafts have the same text as without."
