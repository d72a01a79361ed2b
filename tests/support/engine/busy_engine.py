"""An engine as the service has it, kept busy by callers who come, leave, cancel, vanish and are late, in one thread.

Everything that holds something for a request is there: the shared engine with its cache, the gate and its board,
replies, metrics. For tests of what stays behind.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.cache.shared_request import SharedRequestGate
from autoglm_engine.core import CacheUse, Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.errors import EngineError
from autoglm_engine.messages import Packed, unpack_event
from autoglm_engine.metrics import MetricSpec
from autoglm_engine.runners.base import Runner
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.triton.board.acks import AckBoard, AckGate
from autoglm_engine.triton.board.file import Board
from autoglm_engine.triton.board.seal import Kind
from autoglm_engine.triton.metrics_publisher import PublishedMetrics
from autoglm_engine.triton.responses import Replies

from tests.support.engine.fakes import FakeClock, letters_text

SETTINGS = plain_settings(
    max_queue=24,
    admission="features",
    cache_mode="exact",
    cache_bytes=100_000,
    cache_ttl_seconds=2.0,
    heartbeat_ms=30.0,
)
SECONDS_PER_STEP = 0.01


class NoSeries:
    def increment(self, value: float) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def observe(self, value: float) -> None:
        pass


def no_series(metric: MetricSpec, label: str) -> NoSeries:
    return NoSeries()


class Reader:
    """A caller's response sender, and the detokenizer behind it. One that vanished acknowledges nothing."""

    def __init__(self, board: Board, *, vanishes: bool) -> None:
        self._board = board
        self._vanishes = vanishes

    def send(self, packed: Packed, *, last: bool) -> None:
        _, ack = unpack_event(self._board.seal.open(Kind.EVENT, packed))
        assert ack is not None
        if not self._vanishes:
            self._board.acknowledge(ack)

    def fail(self, code: str, message: str) -> None:
        pass


class BusyEngine:
    """`each_step` is called after every step with its number: a leak may be put there."""

    def __init__(
        self,
        runner: Runner,
        folder: Path,
        *,
        text: TokenText | None = None,
        each_step: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._draw = random.Random(5)
        self._clock = FakeClock()
        self._limits = runner.limits
        self._each_step = each_step
        self._board = AckBoard(4096, folder)
        self._opened = Board.open(folder / self._board.name)
        assert self._opened is not None
        self._acks = AckGate(self._board, self._clock)
        self._metrics = PublishedMetrics(no_series)
        self._replies = Replies(self._acks, self._clock)
        text, shared = text or letters_text(), SharedRequestGate(self._acks)
        engine = Engine(runner, text, [0], SETTINGS, gate=shared, metrics=self._metrics, clock=self._clock)
        self._engine = CachingEngine(engine, "digest", text, SETTINGS, shared, metrics=self._metrics, clock=self._clock)
        self._callers = itertools.count()
        self.num_requests = 0
        self.num_refused = 0
        self.num_steps = 0

    @property
    def counters(self) -> dict[str, int]:
        return self._engine.cache_stats

    def run(self, num_steps: int) -> None:
        """So many steps with company, and then until everybody has been answered."""
        for _ in range(num_steps):
            if self._draw.random() < 0.3:
                self._arrive()
            if self._draw.random() < 0.03:
                self._cancel_somebody()
            self._step()
        while self._engine.has_work:
            self._step()
        self._metrics.publish()

    def close(self) -> None:
        self._board.close()

    def _step(self) -> None:
        self.num_steps += 1
        self._clock.now += SECONDS_PER_STEP
        for event in self._engine.step():
            self._replies(event)
        if self.num_steps % 10 == 0:
            self._engine.cancel(self._acks.lost())
            self._probe()
        if self.num_steps % 50 == 0:
            self._metrics.publish()
        self._each_step(self.num_steps)

    def _probe(self) -> None:
        if ack := self._acks.probe():
            self._opened.acknowledge(ack)

    def _arrive(self) -> None:
        self.num_requests += 1
        caller = f"caller-{next(self._callers)}"
        request_id = self._replies.open(caller, Reader(self._opened, vanishes=self._draw.random() < 0.05))
        try:
            for event in self._engine.submit(self._request(request_id)):
                self._replies(event)
        except EngineError as error:
            self.num_refused += 1
            self._replies.refuse(request_id, error.code, str(error))

    def _cancel_somebody(self) -> None:
        """Perhaps one who has left, or who has not come yet."""
        number = self.num_requests - self._draw.randrange(8) + 1
        self._engine.cancel(self._replies.find([f"caller-{number}"]))

    def _request(self, request_id: str) -> Request:
        draw = self._draw
        deadline = self._clock.now + draw.random() if draw.random() < 0.1 else None
        return Request(
            request_id,
            self._prompt(),
            self._sampling(),
            stream=draw.random() < 0.7,
            arrival=self._clock.now,
            deadline=deadline,
            cache=draw.choice((CacheUse.DEFAULT, CacheUse.DEFAULT, CacheUse.BYPASS, CacheUse.REFRESH)),
            tenant=draw.choice(("", "a", "b")),
            user=f"user-{draw.randrange(10**6)}",
        )

    def _prompt(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Of five families that begin alike; one in three is an old acquaintance."""
        family, highest = self._draw.randrange(5), self._limits.vocab_size - 1
        own = [] if self._draw.random() < 0.3 else [self._draw.randrange(highest) for _ in range(8)]
        return np.array([(family * 11 + i) % highest for i in range(24)] + own, np.int32)

    def _sampling(self) -> SamplingOptions:
        draw = self._draw
        if draw.random() < 0.5:
            return SamplingOptions(max_tokens=draw.choice((5, 25)))
        return SamplingOptions(
            max_tokens=draw.randrange(1, 30),
            temperature=0.8,
            top_k=draw.choice((0, 5)),
            top_p=draw.choice((0.9, 1.0)),
            repetition_penalty=draw.choice((1.0, 1.1)),
            frequency_penalty=draw.choice((0.0, 0.2)),
            seed=draw.choice((None, draw.randrange(2**40))),
            stop=draw.choice(((), ("a", "bc"))),
            logprobs=draw.choice((0, 2)),
        )
