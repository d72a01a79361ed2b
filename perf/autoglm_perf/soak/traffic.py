"""What a soak asks: requests whose right answer is known, and what real clients do beside that: cancel, err, read
slowly."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from autoglm_client import AsyncClient, AutoGLMError, InvalidRequestError
from autoglm_client.stream import Stream
from tokenizers import Tokenizer

from autoglm_perf.load.load import Question, greedy
from autoglm_perf.load.pauses import PauseWatch
from autoglm_perf.load.workload import exact_prompts

_PROMPT_TOKENS = (16, 48, 128, 256)
_MAX_TOKENS = (8, 24, 64, 128)
_SLOWEST_SECONDS = 0.3  # of a slow reader, between two pieces


class Kind(Enum):
    STREAM = "streamed"
    KEPT = "may be kept"
    WHOLE = "whole"
    SLOW = "slow reader"
    CANCEL = "cancelled"
    BAD = "bad input"


SHARES = {Kind.STREAM: 55, Kind.KEPT: 20, Kind.WHOLE: 10, Kind.SLOW: 5, Kind.CANCEL: 5, Kind.BAD: 5}
BAD_OPTIONS: tuple[dict[str, object], ...] = (
    {"top_p": 0.0},
    {"temperature": -1.0},
    {"max_tokens": 0},
    {"max_tokens": 1_000_000},
    {"stop": ["x"] * 17},
    {"tenant": "t" * 129},
    {"cache": "sometimes"},
)


@dataclass(frozen=True, slots=True)
class Task:
    kind: Kind
    question: Question
    patience: float  # 0 ... 1: how slow a slow reader is, how early a cancel comes


@dataclass(frozen=True, slots=True)
class Record:
    """`wrong` says what was wrong with the outcome; None: it was right. Times are of time.monotonic()."""

    kind: Kind
    due: float
    finished: float
    wrong: str | None = None

    @property
    def latency(self) -> float:
        """From when it should have been sent, so that a load generator that falls behind hides nothing."""
        return self.finished - self.due


def make_pool(tokenizer: Tokenizer, num_each: int, seed: int) -> list[Question]:
    """Prompts of several lengths with answers of several lengths."""
    return [
        Question(prompt, greedy(max_tokens, cache="bypass"))
        for row, prompt_tokens in enumerate(_PROMPT_TOKENS)
        for column, max_tokens in enumerate(_MAX_TOKENS)
        for prompt in exact_prompts(tokenizer, num_each, prompt_tokens, seed + 100 * row + column)
    ]


def draw_task(pool: list[Question], draw: random.Random) -> Task:
    (kind,) = draw.choices(list(SHARES), weights=list(SHARES.values()))
    question = draw.choice(pool)
    if kind is Kind.KEPT:
        question = Question(question.prompt, question.options.with_changes({"cache": "default"}))
    if kind is Kind.BAD:
        question = Question(question.prompt, question.options.with_changes(draw.choice(BAD_OPTIONS)))  # type: ignore[arg-type]
    return Task(kind, question, draw.random())


class Asker:
    """Performs tasks and compares every answer with the right one, by prompt."""

    def __init__(
        self,
        client: AsyncClient,
        right: Mapping[str, str],
        pauses: PauseWatch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._right = right
        self._pauses = pauses
        self._clock = clock

    async def perform(self, task: Task, due: float) -> Record:
        try:
            wrong = await self._perform(task)
        except AutoGLMError as error:
            wrong = f"{type(error).__name__}: {error}"
        return Record(task.kind, due, self._clock(), wrong)

    async def _perform(self, task: Task) -> str | None:
        match task.kind:
            case Kind.BAD:
                return await self._refused(task.question)
            case Kind.CANCEL:
                return await self._cancelled(task)
            case Kind.WHOLE:
                result = await self._client.generate(task.question.prompt, task.question.options)
                return self._compare(task.question, result.text)
            case Kind.STREAM:
                return self._compare(task.question, await self._watched(task.question))
            case Kind.KEPT | Kind.SLOW:
                pause = _SLOWEST_SECONDS * task.patience if task.kind is Kind.SLOW else 0.0
                return self._compare(task.question, await self._read(task.question, pause))

    async def _watched(self, question: Question) -> str:
        """Only streams that are computed count for pauses: an answer that is kept comes whatever the engine does."""
        texts, watching = list[str](), False
        try:
            async with self._client.stream(question.prompt, question.options) as stream:
                async for piece in stream:
                    now = self._clock()
                    texts.append(piece.text)
                    if watching:
                        self._pauses.event(now)
                    else:
                        self._pauses.began(now)
                    watching = True
        finally:
            if watching:
                self._pauses.left()
        return "".join(texts)

    async def _read(self, question: Question, pause: float) -> str:
        texts = list[str]()
        async with self._client.stream(question.prompt, question.options) as stream:
            async for piece in stream:
                texts.append(piece.text)
                await asyncio.sleep(pause)
        return "".join(texts)

    async def _cancelled(self, task: Task) -> str | None:
        """Leaves after a few pieces; what came until then must begin the right answer."""
        limit = 1 + int(10 * task.patience)
        async with self._client.stream(task.question.prompt, task.question.options) as stream:
            text = await _first_pieces(stream, limit)
        if self._right[task.question.prompt].startswith(text):
            return None
        return f"{text!r:.60} does not begin {self._right[task.question.prompt]!r:.60}"

    async def _refused(self, question: Question) -> str | None:
        try:
            await self._client.generate(question.prompt, question.options)
        except InvalidRequestError:
            return None
        return f"a bad request was answered: {question.options}"

    def _compare(self, question: Question, text: str) -> str | None:
        right = self._right[question.prompt]
        return None if text.encode() == right.encode() else f"{text!r:.60} instead of {right!r:.60}"


async def _first_pieces(stream: Stream, limit: int) -> str:
    texts = list[str]()
    async for piece in stream:
        texts.append(piece.text)
        if len(texts) == limit:
            break
    return "".join(texts)
