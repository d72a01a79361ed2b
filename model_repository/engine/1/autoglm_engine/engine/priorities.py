"""Priorities: whom a class of requests waits for, and admission by them in front of any policy.

Priorities are Triton's: 1 goes first, and a larger number later. Nobody who has begun is interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Protocol

from autoglm_engine.settings.model import EngineSettings

from .sequence import Sequence, Waiting


class Policy(Protocol):
    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None: ...


@dataclass(slots=True)
class Passed:
    """What a class that waits was passed over since one of it went last."""

    count: int
    since: float


class FairClasses:
    """One that was passed over `admission_max_passed` times, or `admission_max_delay_ms` ago for the first time, goes
    next, and then waits as before. So under a flood of better ones it still gets its small share, and the flood keeps
    its advantage, which it would lose if everyone who waited long went first.

    `places` of a class: where those of it are in the queue, in order.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._most = settings.admission_max_passed
        self._longest_s = settings.admission_max_delay_ms / 1e3
        self._passed: dict[int, Passed] = {}

    def choose(self, levels: Several[int], now: float) -> int:
        """The place of who goes next: the first one of its class. `levels`: the priorities of the queue."""
        if (level := self.next_class(classes := by_class(levels), now)) is None:
            return 0
        self.went(classes, level, classes[level][0], now)
        return classes[level][0]

    def next_class(self, classes: Mapping[int, Several[int]], now: float) -> int | None:
        """None: there is only one, as where nobody sets a priority."""
        self._passed = {level: passed for level, passed in self._passed.items() if level in classes}
        if len(classes) == 1:
            self._passed.clear()
            return None
        due = [level for level in classes if self._is_due(level, now)]
        return min(due, key=lambda level: classes[level][0]) if due else min(classes)

    def went(self, classes: Mapping[int, Several[int]], level: int, place: int, now: float) -> None:
        """The one at `place`, of class `level`."""
        self._passed.pop(level, None)
        for other, places in classes.items():
            if other != level and places[0] < place:
                self._passed.setdefault(other, Passed(0, now)).count += 1

    def _is_due(self, level: int, now: float) -> bool:
        passed = self._passed.get(level)
        if passed is None:
            return self._most == 0
        return passed.count >= self._most or now - passed.since >= self._longest_s


class ByPriority:
    """Of the class that goes next (`FairClasses`), whom `within` chooses of that class alone."""

    def __init__(self, within: Policy, settings: EngineSettings) -> None:
        self.within = within
        self._classes = FairClasses(settings)

    def choose(self, queue: deque[Waiting], running: Several[Sequence], now: float) -> int | None:
        classes = by_class([waiting.request.priority for waiting in queue])
        if (level := self._classes.next_class(classes, now)) is None:
            return self.within.choose(queue, running, now)
        places = classes[level]
        chosen = self.within.choose(deque(queue[place] for place in places), running, now)
        if chosen is None:
            return None
        self._classes.went(classes, level, places[chosen], now)
        return places[chosen]


def by_class(levels: Several[int]) -> dict[int, list[int]]:
    """Priority -> the places in the queue of those that have it, in order."""
    classes: dict[int, list[int]] = {}
    for place, level in enumerate(levels):
        classes.setdefault(level, []).append(place)
    return classes
