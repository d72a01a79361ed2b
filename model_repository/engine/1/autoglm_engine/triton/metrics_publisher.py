"""Gathers the engine's metrics and publishes them to Triton from a thread of its own: there each value is a round trip
between two processes (some 60 microseconds), too slow for the step thread."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from autoglm_engine.metrics import ALL_METRICS, Kind, MetricSpec
from autoglm_engine.system.periodic import Periodic

PREFIX = "autoglm_"
_PERIOD_SECONDS = 0.5
_MAX_PENDING = 100_000  # observations; a publisher that stands still costs bounded memory

Key = tuple[str, str]  # (metric's name, its label's value)


class Series(Protocol):
    """One metric of Triton with one label value."""

    def increment(self, value: float) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


MakeSeries = Callable[[MetricSpec, str], Series]  # (metric, its label's value)


class PublishedMetrics:
    """`make_series` registers a metric with Triton, under `PREFIX` and the metric's name. Metrics without a label are
    registered at once, so that they can be read before anything happened."""

    def __init__(self, make_series: MakeSeries) -> None:
        self._make_series = make_series
        self._specs = {spec.name: spec for spec in ALL_METRICS}
        self._series: dict[Key, Series] = {}
        self._lock = threading.Lock()
        self._increments: defaultdict[Key, float] = defaultdict(float)
        self._gauges: dict[Key, float] = {}
        self._observations: list[tuple[Key, float]] = []
        self._thread = Periodic("metrics-publish", _PERIOD_SECONDS, self.publish, "metrics cannot be published")
        for spec in ALL_METRICS:
            if not spec.label:
                self._find((spec.name, ""))

    def inc(self, metric: MetricSpec, amount: float = 1.0, label: str = "") -> None:
        with self._lock:
            self._increments[metric.name, label] += amount

    def set(self, metric: MetricSpec, value: float, label: str = "") -> None:
        with self._lock:
            self._gauges[metric.name, label] = value

    def observe(self, metric: MetricSpec, value: float) -> None:
        with self._lock:
            if len(self._observations) < _MAX_PENDING:
                self._observations.append(((metric.name, ""), value))

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._thread.close(timeout)

    def publish(self) -> None:
        """Hand on what was gathered."""
        with self._lock:
            increments, self._increments = self._increments, defaultdict(float)
            gauges, self._gauges = self._gauges, {}
            observations, self._observations = self._observations, []
        for key, amount in increments.items():
            self._find(key).increment(amount)
        for key, value in gauges.items():
            self._find(key).set(value)
        for key, value in observations:
            self._find(key).observe(value)

    def _find(self, key: Key) -> Series:
        if key not in self._series:
            self._series[key] = self._make_series(self._specs[key[0]], key[1])
        return self._series[key]


def unit_suffix(spec: MetricSpec) -> str:
    """Prometheus' naming: counters end with _total, histograms with their unit."""
    if spec.kind is Kind.COUNTER:
        return "_total"
    return f"_{spec.unit}" if spec.kind is Kind.HISTOGRAM else ""
