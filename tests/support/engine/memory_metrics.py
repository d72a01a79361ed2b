"""Metrics that stay in this process, to be looked at."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field

from autoglm_engine.metrics import MetricSpec


@dataclass(slots=True)
class Histogram:
    """`counts[i]` values were at most `bounds[i]` and more than the bound before; the last count is all beyond."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def num_values(self) -> int:
        return sum(self.counts)


class MemoryMetrics:
    """A `Metrics`. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], float] = {}
        self._histograms: dict[str, Histogram] = {}

    def inc(self, metric: MetricSpec, amount: float = 1.0, label: str = "") -> None:
        key = (metric.name, label)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, metric: MetricSpec, value: float, label: str = "") -> None:
        with self._lock:
            self._values[metric.name, label] = value

    def observe(self, metric: MetricSpec, value: float) -> None:
        with self._lock:
            if (histogram := self._histograms.get(metric.name)) is None:
                histogram = self._histograms[metric.name] = Histogram(metric.buckets)
            histogram.add(value)

    def value(self, metric: MetricSpec, label: str = "") -> float:
        with self._lock:
            return self._values.get((metric.name, label), 0.0)

    def histogram(self, metric: MetricSpec) -> Histogram:
        with self._lock:
            found = self._histograms.get(metric.name)
            return Histogram(metric.buckets, list(found.counts), found.total) if found else Histogram(metric.buckets)
