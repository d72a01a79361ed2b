"""Samples of one measurement, and what is said of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. Times are milliseconds a step; `tokens`: what a step computes; `floor_ms`: None where a floor
    from memory bandwidth says nothing (prefill computes more than it reads)."""

    system: str
    what: str  # "decode", "prefill"
    batch: int
    tokens: int
    num_samples: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    floor_ms: float | None
    error: float | None = None  # relative L2 distance of what was timed from another way to compute it

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * self.tokens / self.median_ms

    @property
    def times_the_floor(self) -> float | None:
        return self.median_ms / self.floor_ms if self.floor_ms else None

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tokens_per_second": self.tokens_per_second,
            "times_the_floor": self.times_the_floor,
        }


def figure(
    system: str,
    what: str,
    batch: int,
    tokens: int,
    seconds: Sequence[float],
    floor: float | None = None,
    error: float | None = None,
) -> Figure:
    """From `seconds` of single steps, at least one."""
    ordered = sorted(1e3 * value for value in seconds)
    if not ordered:
        raise ValueError(f"{system} {what} {batch}: no samples")
    return Figure(
        system=system,
        what=what,
        batch=batch,
        tokens=tokens,
        num_samples=len(ordered),
        median_ms=statistics.median(ordered),
        p10_ms=ordered[int(0.1 * len(ordered))],
        p90_ms=ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        floor_ms=floor,
        error=error,
    )


def time_each(
    act: Callable[[int], object], warm_up: int, count: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of `count` calls `act(i)`, after `warm_up` calls that are not timed; i goes up over all of
    them."""
    seconds = []
    for index in range(warm_up + count):
        start = clock()
        act(index)
        if index >= warm_up:
            seconds.append(clock() - start)
    return seconds
