"""Admission by priority, in front of any policy: whom a class of requests waits for.

Priorities are Triton's: 1 goes first, and a larger number later. Nobody who runs is interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Protocol

from autoglm_engine.settings.model import EngineSettings

from .sequence import Sequence, Waiting


class Policy(Protocol):
    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None: ...


@dataclass(slots=True)
class Passed:
    """What a class that waits was passed over since one of it was admitted last."""

    count: int
    since: float


class ByPriority:
    """Of the best class that waits, whom `within` chooses of that class alone.

    No class starves: one that was passed over `admission_max_passed` times, or `admission_max_delay_ms` ago for the
    first time, gets the next slot, and then waits as before. So under a flood of better ones it still gets its small
    share, and the flood keeps its advantage, which it would lose if everyone who waited long went first.
    """

    def __init__(self, within: Policy, settings: EngineSettings) -> None:
        self.within = within
        self._most = settings.admission_max_passed
        self._longest_s = settings.admission_max_delay_ms / 1e3
        self._passed: dict[int, Passed] = {}

    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None:
        if len({waiting.request.priority for waiting in queue}) == 1:  # as it is where nobody sets one
            self._passed.clear()
            return self.within.choose(queue, running, now)
        classes = by_class(queue)
        self._passed = {level: passed for level, passed in self._passed.items() if level in classes}
        level = self._level(classes, now)
        places = classes[level]
        chosen = self.within.choose(deque(queue[place] for place in places), running, now)
        if chosen is None:
            return None
        self._note(classes, level, places[chosen], now)
        return places[chosen]

    def _level(self, classes: dict[int, list[int]], now: float) -> int:
        due = [level for level in classes if self._is_due(level, now)]
        return min(due, key=lambda level: classes[level][0]) if due else min(classes)

    def _is_due(self, level: int, now: float) -> bool:
        passed = self._passed.get(level)
        if passed is None:
            return self._most == 0
        return passed.count >= self._most or now - passed.since >= self._longest_s

    def _note(self, classes: dict[int, list[int]], level: int, place: int, now: float) -> None:
        self._passed.pop(level, None)
        for other, places in classes.items():
            if other != level and places[0] < place:
                self._passed.setdefault(other, Passed(0, now)).count += 1


def by_class(queue: deque[Waiting]) -> dict[int, list[int]]:
    """Priority -> the places in the queue of those that have it, in order."""
    classes: dict[int, list[int]] = {}
    for place, waiting in enumerate(queue):
        classes.setdefault(waiting.request.priority, []).append(place)
    return classes
