"""Verified mode of the semantic cache: some of its hits are computed anew while nobody waits, and compared.

A hit was **right** when both answers have the same text, or their embeddings a cosine of at least `SAME_ANSWER` and,
where both are short, no difference in numbers, negations and the like; else it was **false**. The false-hit rate is
that of the latest `WINDOW` comparisons. Once there are `MIN_CHECKS`, a rate above the setting ends the semantic
cache.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from autoglm_engine.core import Event, Request
from autoglm_engine.metrics import SEMANTIC_CHECKS, SEMANTIC_FALSE_RATE, Metrics
from autoglm_engine.settings.model import EngineSettings

from .guards import refusals
from .vector_index import Vector

_log = logging.getLogger(__name__)
SAME_ANSWER = 0.7
WINDOW = 100
MIN_CHECKS = 40
_SHORT_CHARACTERS = 80
_FACTS = {"numbers", "negations", "names", "opposites"}


class Recompute(Protocol):
    def __call__(self, request: Request) -> Event | None:
        """The whole answer, computed anew; None where others need the machine. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Hit:
    request: Request
    served: Event


class SemanticChecks:
    """`text_of`: an answer's text. `too_many_false` is called once, with a sentence. One hit is checked at a time; one
    that is drawn meanwhile is skipped."""

    def __init__(
        self,
        recompute: Recompute,
        text_of: Callable[[Event], str],
        embed: Callable[[str], Vector],
        too_many_false: Callable[[str], object],
        settings: EngineSettings,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._recompute = recompute
        self._text_of = text_of
        self._embed = embed
        self._too_many_false = too_many_false
        self._share = settings.semantic_verify_share
        self._max_rate = settings.semantic_max_false_rate
        self._metrics = metrics
        self._draw = draw
        self._verdicts: deque[bool] = deque(maxlen=WINDOW)  # whether false
        self._num_checked = self._num_false = 0
        self._ended = False
        self._hits: queue.Queue[Hit | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="semantic-checks", daemon=True)
        self._thread.start()

    def offer(self, request: Request, served: Event) -> None:
        """Any thread; never waits."""
        if self._ended or self._draw() >= self._share:
            return
        try:
            self._hits.put_nowait(Hit(request, served))
        except queue.Full:
            self._metrics.inc(SEMANTIC_CHECKS, label="skipped")

    @property
    def false_rate(self) -> float:
        verdicts = tuple(self._verdicts)
        return sum(verdicts) / len(verdicts) if verdicts else 0.0

    @property
    def stats(self) -> dict[str, float]:
        return {"checked": self._num_checked, "false": self._num_false, "false_rate": round(self.false_rate, 4)}

    def close(self) -> None:
        self._ended = True
        with self._hits.mutex:
            self._hits.queue.clear()
        with suppress(queue.Full):
            self._hits.put_nowait(None)

    def _run(self) -> None:
        while (hit := self._hits.get()) is not None:
            try:
                self._check(hit)
            except Exception as error:
                _log.warning("a semantic hit could not be checked: %s", error)

    def _check(self, hit: Hit) -> None:
        computed = self._recompute(hit.request)
        if computed is None or computed.finish_reason is None or self._ended:
            self._metrics.inc(SEMANTIC_CHECKS, label="skipped")
            return
        is_right = self.agree(self._text_of(hit.served), self._text_of(computed))
        self._metrics.inc(SEMANTIC_CHECKS, label="right" if is_right else "false")
        self._verdicts.append(not is_right)
        self._num_checked += 1
        self._num_false += not is_right
        self._metrics.set(SEMANTIC_FALSE_RATE, self.false_rate)
        if len(self._verdicts) >= MIN_CHECKS and self.false_rate > self._max_rate:
            self._ended = True
            self._too_many_false(
                f"{self.false_rate:.0%} of the last {len(self._verdicts)} hits that were computed again were wrong; "
                f"semantic_max_false_rate allows {self._max_rate:.0%}"
            )

    def agree(self, one: str, other: str) -> bool:
        if one == other:
            return True
        is_short = max(len(one), len(other)) <= _SHORT_CHARACTERS
        if is_short and _FACTS & set(refusals(one, other)):
            return False
        return float(self._embed(one) @ self._embed(other)) >= SAME_ANSWER
