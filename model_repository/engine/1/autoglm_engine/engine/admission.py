"""Which waiting request gets the next slot: the seam, and the policies that need to know nothing of a request.

A policy decides the order only. Whoever is admitted, and when, changes no answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Several
from typing import Protocol

from autoglm_engine.settings.model import EngineSettings

from .admission_features import FeaturePolicy
from .priorities import ByPriority
from .sequence import Sequence, Waiting
from .slots import SlotTable


class AdmissionPolicy(Protocol):
    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None:
        """The place in `queue` (in the order of arrival, never empty) of the request that gets a slot now; None:
        nobody, in this step. A slot can be given and the request that is named gets it. `running` includes those
        admitted in this step. With nothing running, None may only be said for a bounded time."""
        ...


class Fifo:
    """First come, first served, and nobody waits for company."""

    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None:
        return 0


class Static:
    """Batches that are closed: one is formed when the last sequence of the one before has ended, from `size` requests
    or from those that are there `window_ms` after the first of them came. It is here to be compared with."""

    def __init__(self, size: int, window_ms: float) -> None:
        self._size = size
        self._window_s = window_ms / 1e3
        self._room = 0

    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None:
        if not running:
            self._room = self._new_batch(queue, now)
        if not self._room:
            return None
        self._room -= 1
        return 0

    def _new_batch(self, queue: deque[Waiting], now: float) -> int:
        is_due = len(queue) >= self._size or now - queue[0].queued_at >= self._window_s
        return min(len(queue), self._size) if is_due else 0


def make_policy(settings: EngineSettings, slots: SlotTable) -> AdmissionPolicy:
    """The one that the settings name, within each class of priority. Closed batches know no priorities: they are there
    to be compared with."""
    match settings.admission:
        case "features":
            return ByPriority(FeaturePolicy(settings, slots), settings)
        case "static":
            return Static(min(settings.static_size or slots.num_slots, slots.num_slots), settings.static_window_ms)
        case _:
            return ByPriority(Fifo(), settings)
