"""What the Redis tier counts, as metrics and on demand."""

from __future__ import annotations

import threading
from collections import Counter

from autoglm_engine.metrics import (
    CACHE_CORRUPTED,
    REDIS_DROPPED,
    REDIS_ERRORS,
    REDIS_HITS,
    REDIS_LOOKUP,
    REDIS_MISSES,
    REDIS_SKIPPED,
    REDIS_STORES,
    REDIS_UP,
    Metrics,
    MetricSpec,
)

_COUNTED = (REDIS_HITS, REDIS_MISSES, REDIS_ERRORS, REDIS_SKIPPED, REDIS_STORES, REDIS_DROPPED)


class RedisCounts:
    """Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._counter: Counter[str] = Counter()
        self.is_up(False)

    def count(self, metric: MetricSpec, amount: int = 1) -> None:
        if not amount:
            return
        with self._lock:
            self._counter[metric.name] += amount
        self._metrics.inc(metric, amount)

    def corrupted(self) -> None:
        """Counted with those of this process' memory where metrics are read, and apart on demand."""
        with self._lock:
            self._counter["cache_redis_corrupted"] += 1
        self._metrics.inc(CACHE_CORRUPTED)

    def looked_up(self, seconds: float) -> None:
        self._metrics.observe(REDIS_LOOKUP, seconds)

    def is_up(self, up: bool) -> None:
        with self._lock:
            self._counter[REDIS_UP.name] = int(up)
        self._metrics.set(REDIS_UP, int(up))

    def stats(self) -> dict[str, int]:
        with self._lock:
            names = (*(metric.name for metric in _COUNTED), "cache_redis_corrupted", REDIS_UP.name)
            return {name: self._counter[name] for name in names}
