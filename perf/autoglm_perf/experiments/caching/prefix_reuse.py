"""A chat of several turns under one long system prompt, with the prefix reuse of slots off and on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from autoglm_client import AsyncClient

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import exact_prompts
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found

_METRICS = (FIRST_TOKEN, LATENCY, REQUESTS)
DESCRIPTION = Description(
    "prefix-reuse",
    "Prefix reuse",
    "Chats that share a system prompt and grow turn by turn compute only what is new.",
    _METRICS,
)


@dataclass(frozen=True, slots=True)
class Chats:
    system: str
    questions: tuple[tuple[str, ...], ...]  # of each chat, its turns


def run(context: Context) -> Found:
    off, on = (_measure(context, flag) for flag in ("false", "true"))
    chats, turns = context.size(8, 2), context.size(4, 2)
    settings = {"chats": f"{chats} at once, {turns} turns, system prompt of 192 tokens, 24 new a turn, 16 answered"}
    cached = f"Prompt tokens taken from slots: off {off[1]:.0%}, on {on[1]:.0%}."
    return Found((off[0], on[0]), settings, f"{chats * turns} turns", (cached,))


def _measure(context: Context, flag: str) -> tuple[Arm, float]:
    label, runs, shares = ("reuse on" if flag == "true" else "reuse off"), [], []
    with context.server({"AUTOGLM_PREFIX_REUSE": flag}) as server:
        for _ in context.repeated(label):
            timings, share = asyncio.run(_ask(server.grpc_url, _chats(context)))
            runs.append(figures(label, context.size(8, 2), timings))
            shares.append(share)
    return arm(label, runs, _METRICS), sum(shares) / len(shares)


def _chats(context: Context) -> Chats:
    seed, chats, turns = next(context.seeds), context.size(8, 2), context.size(4, 2)
    questions = exact_prompts(context.tokenizer, chats * turns, 24, seed)
    system = exact_prompts(context.tokenizer, 1, 192, seed)[0]
    return Chats(system, tuple(questions[n * turns : (n + 1) * turns] for n in range(chats)))


async def _ask(url: str, chats: Chats) -> tuple[list[RequestTiming], float]:
    async with AsyncClient(url) as client:
        told = await asyncio.gather(*(_chat(client, chats.system, turns) for turns in chats.questions))
    turns = [turn for chat in told for turn in chat]
    return [timing for timing, _, _ in turns], sum(turn[1] for turn in turns) / sum(turn[2] for turn in turns)


async def _chat(client: AsyncClient, system: str, questions: tuple[str, ...]) -> list[tuple[RequestTiming, int, int]]:
    """(timing, cached tokens, prompt tokens) of each turn."""
    messages, turns = [{"role": "system", "content": system}], []
    for question in questions:
        messages = [*messages, {"role": "user", "content": question}]
        started, first, text, usage = time.monotonic(), 0.0, "", None
        async with client.stream(messages, max_tokens=16, temperature=0.0, ignore_eos=True, cache="bypass") as stream:
            async for piece in stream:
                first, text, usage = first or time.monotonic(), text + piece.text, piece.usage
        assert usage is not None, "a stream ended without a piece"
        turns.append(
            (RequestTiming(started, first, time.monotonic(), 16, ()), usage.cached_tokens, usage.prompt_tokens)
        )
        messages.append({"role": "assistant", "content": text})
    return turns
