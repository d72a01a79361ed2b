"""The load generator: many streams at once through `AsyncClient`, each timed as a user sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from autoglm_client import TLS, AsyncClient, AutoGLMError, GenerationOptions
from autoglm_client.model_names import ENSEMBLE
from autoglm_client.transport.headers import Headers

from .measures import RequestTiming
from .workload import Workload

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """`streamed` False asks for the answer in one response."""

    prompt: str
    options: GenerationOptions
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """`cache_hit`: none, exact or coalesced; `text` is what came, also of a request that failed in the end."""

    question: Question
    text: str
    cache_hit: str
    timing: RequestTiming


def greedy(max_tokens: int, cache: str | None = None) -> GenerationOptions:
    """Exactly `max_tokens` tokens, and those with the largest logits."""
    return GenerationOptions(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, cache=cache)


def measure_load(
    url: str,
    workload: Workload,
    concurrency: int,
    progress: Progress | None = None,
    model: str = ENSEMBLE,
    tls: TLS | None = None,
    headers: Headers | None = None,
) -> list[RequestTiming]:
    """Ask every prompt of `workload`, past the cache, `concurrency` at any time; failed requests come with their
    error."""
    options = greedy(workload.max_tokens, cache="bypass")
    questions = [Question(prompt, options) for prompt in workload.prompts]
    return [answer.timing for answer in ask_all(url, questions, concurrency, progress, model, tls, headers)]


def ask_all(
    url: str,
    questions: Sequence[Question],
    concurrency: int,
    progress: Progress | None = None,
    model: str = ENSEMBLE,
    tls: TLS | None = None,
    headers: Headers | None = None,
) -> list[Answered]:
    """In the order in which they were answered, `concurrency` under way at any time."""
    client = partial(AsyncClient, url, model=model, tls=tls, headers=headers)
    return asyncio.run(_ask_all(client, questions, concurrency, progress or (lambda count: None)))


async def _ask_all(
    connect: Callable[[], AsyncClient], questions: Sequence[Question], concurrency: int, progress: Progress
) -> list[Answered]:
    waiting, answers = iter(questions), list[Answered]()
    async with connect() as client, asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(_work(client, waiting, answers, progress))
    return answers


async def _work(
    client: AsyncClient, questions: Iterator[Question], answers: list[Answered], progress: Progress
) -> None:
    for question in questions:
        answers.append(await ask(client, question))
        progress(1)


async def ask(client: AsyncClient, question: Question) -> Answered:
    """One answer. An error of the client's is in the timing, never raised."""
    if not question.streamed:
        return await _ask_whole(client, question)
    started, error = time.monotonic(), None
    arrivals: list[tuple[float, int]] = []  # when, completion tokens so far
    texts: list[str] = []
    cache_hit = "none"
    try:
        async with client.stream(question.prompt, question.options) as stream:
            async for piece in stream:
                arrivals.append((time.monotonic(), piece.usage.completion_tokens))
                texts.append(piece.text)
                cache_hit = piece.cache_hit
    except AutoGLMError as failure:
        error = str(failure)
    arrivals = arrivals or [(time.monotonic(), 0)]
    gaps = tuple(token_gaps(arrivals))
    timing = RequestTiming(started, arrivals[0][0], arrivals[-1][0], arrivals[-1][1], gaps, error)
    return Answered(question, "".join(texts), cache_hit, timing)


async def _ask_whole(client: AsyncClient, question: Question) -> Answered:
    started = time.monotonic()
    try:
        result = await client.generate(question.prompt, question.options)
    except AutoGLMError as failure:
        now = time.monotonic()
        return Answered(question, "", "none", RequestTiming(started, now, now, 0, (), str(failure)))
    now = time.monotonic()
    timing = RequestTiming(started, now, now, result.usage.completion_tokens, ())
    return Answered(question, result.text, result.cache_hit, timing)


def token_gaps(arrivals: list[tuple[float, int]]) -> Iterator[float]:
    """Tokens that came in one response share its gap evenly."""
    for (before, had), (now, has) in pairwise(arrivals):
        for _ in range(has - had):
            yield (now - before) / (has - had)
