"""Answers of very different lengths: in flight, in closed batches, and in batches that are computed until their longest ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from autoglm_client import AsyncClient

from autoglm_perf.arms import LATENCY, LATENCY_95, REQUESTS, TOKENS, arm, figures
from autoglm_perf.context import Context
from autoglm_perf.experiment import Description, Found, Published
from autoglm_perf.load import Question, ask_all, greedy
from autoglm_perf.measures import RequestTiming, RunFigures
from autoglm_perf.workload import exact_prompts

_METRICS = (REQUESTS, TOKENS, LATENCY, LATENCY_95)
_SHORTEST, _LONGEST, _SLOTS, _PROMPT_TOKENS = 8, 256, 16, 32
_PADDED, _CLOSED = "static, padded to the longest answer", "static, rows end on their own"
_IN_FLIGHT, _STREAMED = "in flight", "in flight, streamed"
DESCRIPTION = Description(
    "static-batching",
    "Static batching against in flight",
    "With answers of 8 to 256 tokens, a batch that is joined and left at every step makes at least twice the requests a second of a padded static one, at a lower p50.",
    _METRICS,
    (Published("static: medium throughput, higher latency", "dynamic (in flight): high, low"),),
)

Item = TypeVar("Item")
Measure = Callable[[Sequence[Question]], list[RequestTiming]]


def run(context: Context) -> Found:
    """Two servers, of which one is idle; the sides take turns on the same requests."""
    runs: dict[str, list[RunFigures]] = {label: [] for label in (_PADDED, _CLOSED, _IN_FLIGHT, _STREAMED)}
    with context.server() as fifo, context.server({"AUTOGLM_ADMISSION": "static"}) as static:
        measures: dict[str, Measure] = {
            _PADDED: lambda questions: asyncio.run(_in_padded_batches(fifo.grpc_url, questions)),
            _CLOSED: lambda questions: _all_at_once(static.grpc_url, questions),
            _IN_FLIGHT: lambda questions: _all_at_once(fifo.grpc_url, questions),
            _STREAMED: lambda questions: _all_at_once(fifo.grpc_url, [replace(q, streamed=True) for q in questions]),
        }
        for server in (fifo, static):
            _all_at_once(server.grpc_url, _questions(context, _SLOTS))
        for _ in context.repeated("lengths"):
            for label, measure in measures.items():
                questions = _questions(context, _count(context))
                runs[label].append(figures(label, len(questions), measure(questions)))
    arms = tuple(arm(label, found, _METRICS) for label, found in runs.items())
    settings = {
        "requests": f"all there at once; {_PROMPT_TOKENS} tokens in, {_SHORTEST} to {_LONGEST} out, uniform, greedy; {_SLOTS} slots",
        "answers": "whole, but for the last row",
        "padded": f"{_SLOTS} requests a batch, each computed as far as the longest, all answered at its end; tokens beyond what was asked do not count",
    }
    remarks = (_bound(_count(context)),)
    return Found(arms, settings, f"{_count(context)} requests", remarks)


def _count(context: Context) -> int:
    return context.size(128, 32)


def _questions(context: Context, count: int) -> list[Question]:
    """Fresh prompts, since a slot would know those asked before; the lengths are always the same."""
    prompts = exact_prompts(context.tokenizer, count, _PROMPT_TOKENS, next(context.seeds))
    asked = zip(prompts, lengths(count), strict=True)
    return [Question(prompt, greedy(number, cache="bypass"), streamed=False) for prompt, number in asked]


def lengths(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(_SHORTEST, _LONGEST) for _ in range(count)]


def longest_of_batches(asked: Sequence[int], size: int) -> list[int]:
    """For each request, how far its batch computes it."""
    return [max(batch) for batch in _batches(asked, size) for _ in batch]


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _bound(count: int) -> str:
    asked = lengths(count)
    ratio = sum(longest_of_batches(asked, _SLOTS)) / sum(asked)
    return f"A padded batch computes {ratio:.2f} output tokens for each one that is asked for; that alone bounds what it can lose here."


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
