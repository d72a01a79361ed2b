"""Answers of very different lengths: in flight, in closed batches, and in batches that are computed until their longest
ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from autoglm_client import AsyncClient

from autoglm_perf.load.load import Question, ask_all, greedy
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, REQUESTS, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Description, Found, Published

_METRICS = (REQUESTS, TOKENS, LATENCY, LATENCY_95)
_SHORTEST, _LONGEST, _SLOTS, _PROMPT_TOKENS = 8, 256, 16, 32
_PADDED, _CLOSED = "static, padded to the longest answer", "static, rows end on their own"
_IN_FLIGHT, _STREAMED = "in flight", "in flight, streamed"
_UNIFORM, _SKEWED = "uniform", "skewed"
_SIDES = {_UNIFORM: (_PADDED, _CLOSED, _IN_FLIGHT, _STREAMED), _SKEWED: (_PADDED, _CLOSED, _IN_FLIGHT)}
DESCRIPTION = Description(
    "static-batching",
    "Static batching against in flight",
    (
        "With answers of 8 to 256 tokens, a batch that is joined and left at every step makes more requests a "
        "second than a padded static one, at a lower p50; the more so the more answers are short."
    ),
    _METRICS,
    (Published("static: medium throughput, higher latency", "dynamic (in flight): high, low"),),
)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Servers:
    """Both run at once; the one that is not asked is idle."""

    fifo: str  # gRPC addresses
    static: str


def run(context: Context) -> Found:
    """The sides take turns; each time with prompts of their own, and always with the same lengths."""
    runs: dict[str, list[RunFigures]] = {_label(kind, side): [] for kind, sides in _SIDES.items() for side in sides}
    with context.server() as fifo, context.server({"AUTOGLM_ADMISSION": "static"}) as static:
        servers = Servers(fifo.grpc_url, static.grpc_url)
        for url in (servers.fifo, servers.static):
            _all_at_once(url, _questions(context, _UNIFORM)[:_SLOTS])
        for _ in context.repeated("lengths"):
            for kind, sides in _SIDES.items():
                for side in sides:
                    timings = _measure(servers, side, _questions(context, kind))
                    runs[_label(kind, side)].append(figures(side, len(timings), timings))
    arms = tuple(arm(label, found, _METRICS) for label, found in runs.items())
    settings = {
        "requests": (
            f"all there at once; {_PROMPT_TOKENS} tokens in, {_SHORTEST} to {_LONGEST} out, greedy; {_SLOTS} slots"
        ),
        "uniform, skewed": "lengths uniform at random, or their logarithms",
        "answers": "whole, but for the row that says streamed",
        "padded": (
            f"{_SLOTS} requests a batch, each computed as far as the longest, all answered at its end; tokens "
            "beyond what was asked do not count"
        ),
    }
    baselines = {_label(kind, side): _label(kind, _PADDED) for kind, sides in _SIDES.items() for side in sides}
    remarks = tuple(_bound(kind, _count(context)) for kind in _SIDES)
    return Found(arms, settings, f"{_count(context)} requests", remarks, baselines)


def _label(kind: str, side: str) -> str:
    return f"{kind}: {side}"


def _count(context: Context) -> int:
    return context.size(96, 32)


def _questions(context: Context, kind: str) -> list[Question]:
    """A slot would know prompts that were asked before."""
    count = _count(context)
    prompts = exact_prompts(context.tokenizer, count, _PROMPT_TOKENS, next(context.seeds))
    asked = zip(prompts, lengths(count, is_skewed=kind == _SKEWED), strict=True)
    return [Question(prompt, greedy(number, cache="bypass"), streamed=False) for prompt, number in asked]


def lengths(count: int, *, is_skewed: bool, seed: int = 0) -> list[int]:
    """Of `count` answers: uniform, or uniform in their logarithm."""
    draw = random.Random(seed)
    ratio = _LONGEST / _SHORTEST
    return [
        round(_SHORTEST * ratio ** draw.random()) if is_skewed else draw.randint(_SHORTEST, _LONGEST)
        for _ in range(count)
    ]


def longest_of_batches(asked: Sequence[int], size: int) -> list[int]:
    """For each request, how far its batch computes it."""
    return [max(batch) for batch in _batches(asked, size) for _ in batch]


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _bound(kind: str, count: int) -> str:
    asked = lengths(count, is_skewed=kind == _SKEWED)
    ratio = sum(longest_of_batches(asked, _SLOTS)) / sum(asked)
    return (
        f"{kind.capitalize()}: a padded batch computes {ratio:.2f} output tokens for each one that is asked for, "
        "which is about what batching in flight can gain."
    )


def _measure(servers: Servers, side: str, questions: Sequence[Question]) -> list[RequestTiming]:
    if side == _PADDED:
        return asyncio.run(_in_padded_batches(servers.fifo, questions))
    if side == _CLOSED:
        return _all_at_once(servers.static, questions)
    return _all_at_once(servers.fifo, [replace(question, streamed=side == _STREAMED) for question in questions])


def _all_at_once(url: str, questions: Sequence[Question]) -> list[RequestTiming]:
    return [answer.timing for answer in ask_all(url, questions, len(questions))]


async def _in_padded_batches(url: str, questions: Sequence[Question]) -> list[RequestTiming]:
    began, timings = time.monotonic(), list[RequestTiming]()
    async with AsyncClient(url) as client:
        for batch in _batches(questions, _SLOTS):
            options = greedy(max(_asked(question) for question in batch), cache="bypass")
            await asyncio.gather(*(client.generate(question.prompt, options) for question in batch))
            now = time.monotonic()
            timings += [RequestTiming(began, now, now, _asked(question), ()) for question in batch]
    return timings


def _asked(question: Question) -> int:
    assert question.options.max_tokens is not None, "every question here names its length"
    return question.options.max_tokens
