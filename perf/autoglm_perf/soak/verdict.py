"""From what a soak saw to what is said of it. Pure."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from autoglm_perf.load.measures import Percentiles
from autoglm_perf.suite.plot import Line, Panel

from .traffic import Kind, Record
from .watch import Sample, series

ALLOWED_GROWTH = 0.02
ALLOWED_PAUSE_SECONDS = 0.25
_BUSY = ("running", "waiting", "slots_busy")
_MEBIBYTE = 1 << 20
_WINDOW_SECONDS = 5.0  # of a point of the latency's plot
VALID = (Kind.STREAM, Kind.KEPT, Kind.WHOLE, Kind.SLOW)
_TIMED = (Kind.STREAM, Kind.KEPT, Kind.WHOLE)  # a slow reader's time is its own


@dataclass(frozen=True, slots=True)
class Soaked:
    """Times are of time.monotonic(). `settled`: from then on nothing may grow. `pauses`: the longest by whole second.
    `last`: a sample after the last request had ended; `left_over`: regions of shared memory that outlived the
    server."""

    began: float
    settled: float
    records: Sequence[Record]
    samples: Sequence[Sample]
    pauses: Mapping[int, float]
    last: Sample
    left_over: int

    @property
    def valid(self) -> list[Record]:
        return [record for record in self.records if record.kind in VALID]

    @property
    def right_share(self) -> float:
        return sum(record.wrong is None for record in self.valid) / max(1, len(self.valid))

    @property
    def latencies(self) -> list[float]:
        return [record.latency for record in self.records if record.kind in _TIMED and record.wrong is None]

    @property
    def step_s(self) -> float:
        """A step while the engine works: the median over the samples of the time a step took."""
        steps = [
            (after.at - before.at, _step_count(after) - _step_count(before)) for before, after in pairwise(self.samples)
        ]
        return statistics.median([seconds / count for seconds, count in steps if count > 0] or [0.0])

    @property
    def longest_pause_s(self) -> float:
        return max(self.pauses.values(), default=0.0)

    def growth(self, value: Callable[[Sample], float]) -> float:
        """By what share the largest value after `settled` is over the value then."""
        after = [value(sample) for sample in self.samples if sample.at >= self.settled]
        return max(after) / after[0] - 1 if after and after[0] else 0.0


def unmet(soaked: Soaked) -> tuple[str, ...]:
    """What should have been shown and was not, a sentence each."""
    found = []
    if wrong := [record for record in soaked.records if record.wrong]:
        kinds = ", ".join(f"{count} {kind.value}" for kind, count in Counter(r.kind for r in wrong).items())
        found.append(
            f"{len(wrong)} of {len(soaked.records):,} requests had another outcome than they should "
            f"({kinds}); the first: {wrong[0].wrong}"
        )
    if (growth := soaked.growth(lambda sample: sample.memory)) > ALLOWED_GROWTH:
        found.append(
            f"memory grew by {growth:.1%} after the first minute; {ALLOWED_GROWTH:.0%} is allowed. {_growing(soaked)}"
        )
    if soaked.longest_pause_s > ALLOWED_PAUSE_SECONDS + soaked.step_s:
        found.append(
            f"a pause of {1e3 * soaked.longest_pause_s:.0f} ms; {1e3 * ALLOWED_PAUSE_SECONDS:.0f} ms and a step of "
            f"{1e3 * soaked.step_s:.0f} ms are allowed"
        )
    if (grown := soaked.growth(lambda sample: sample.shared_bytes)) > ALLOWED_GROWTH:
        found.append(f"shared memory grew by {grown:.1%}; {ALLOWED_GROWTH:.0%} is allowed")
    if soaked.left_over:
        found.append(f"{soaked.left_over} regions of shared memory outlived the server")
    if not is_idle(soaked.last):
        counts = ", ".join(f"{name} {soaked.last.engine.get(name, 'unknown')}" for name in _BUSY)
        found.append(f"after the last request the engine says {counts}")
    return tuple(found)


def is_idle(sample: Sample) -> bool:
    return all(sample.engine.get(name) == 0 for name in _BUSY)


def _growing(soaked: Soaked) -> str:
    """By process, in MiB."""
    first = next(sample for sample in soaked.samples if sample.at >= soaked.settled)
    last = soaked.samples[-1]
    parts = (f"{name} {(last.allocated[name] - first.allocated[name]) / _MEBIBYTE:+.1f}" for name in first.allocated)
    return f"By process, at the end, in MiB: {', '.join(parts)}."


def panels(soaked: Soaked) -> tuple[Panel, ...]:
    samples = list(soaked.samples)
    names = list(samples[0].allocated)

    def memory_of(name: str) -> Callable[[Sample], float]:
        return lambda sample: sample.allocated[name] / _MEBIBYTE

    processes = (Line(name, series(samples, soaked.began, memory_of(name))) for name in names)
    memory = Line("all", series(samples, soaked.began, lambda sample: sample.memory / _MEBIBYTE))
    pauses = tuple((second - soaked.began, 1e3 * longest) for second, longest in sorted(soaked.pauses.items()))
    slots = Line("slots busy", series(samples, soaked.began, lambda sample: sample.engine.get("slots_busy", 0)))
    waiting = Line("waiting", series(samples, soaked.began, lambda sample: sample.engine.get("waiting", 0)))
    shared = Line("/dev/shm", series(samples, soaked.began, lambda sample: sample.shared_bytes / _MEBIBYTE))
    return (
        Panel("memory that the processes allocated", "MiB", (memory, *processes)),
        Panel("latency of requests by the time they were due", "ms", _latency_lines(soaked)),
        Panel("longest pause of each second", "ms", (Line("pause", pauses),)),
        Panel("slots and queue", "requests", (slots, waiting)),
        Panel("shared memory in use", "MiB", (shared,)),
    )


def _latency_lines(soaked: Soaked) -> tuple[Line, ...]:
    windows = defaultdict[int, list[float]](list)
    for record in soaked.records:
        if record.kind in _TIMED and record.wrong is None:
            windows[int((record.due - soaked.began) / _WINDOW_SECONDS)].append(record.latency)
    found = {window: Percentiles.of(values) for window, values in sorted(windows.items())}
    middle = tuple((_WINDOW_SECONDS * window, p.p50) for window, p in found.items())
    high = tuple((_WINDOW_SECONDS * window, p.p95) for window, p in found.items())
    return Line("p50", middle), Line("p95", high)


def _step_count(sample: Sample) -> int:
    return sample.engine.get("steps", 0)
