"""From timings of single requests to the figures of a run. Seconds inside; milliseconds where people read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestTiming:
    """One request as its client saw it. `token_gaps`: seconds between the arrivals of responses, spread evenly over
    the tokens that came together."""

    started: float
    first_token: float
    finished: float
    num_tokens: int
    token_gaps: tuple[float, ...]
    error: str | None = None

    @property
    def time_to_first_token(self) -> float:
        return self.first_token - self.started

    @property
    def latency(self) -> float:
        return self.finished - self.started


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Milliseconds from seconds; not-a-number where there is nothing."""
        if not values:
            return cls(float("nan"), float("nan"), float("nan"))
        ordered = sorted(values)
        return cls(*(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.50, 0.95, 0.99)))


@dataclass(frozen=True, slots=True)
class Goal:
    """A request is good when it meets both; goodput counts good requests only."""

    time_to_first_token_ms: float = 2_000.0
    inter_token_ms: float = 100.0

    def met_by(self, timing: RequestTiming) -> bool:
        mean_gap = statistics.fmean(timing.token_gaps) if timing.token_gaps else 0.0
        in_time = 1e3 * timing.time_to_first_token <= self.time_to_first_token_ms
        return timing.error is None and in_time and 1e3 * mean_gap <= self.inter_token_ms


@dataclass(frozen=True, slots=True)
class RunFigures:
    system: str
    concurrency: int
    num_requests: int
    num_errors: int
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    goodput_per_second: float
    latency_ms: Percentiles
    time_to_first_token_ms: Percentiles
    inter_token_latency_ms: Percentiles

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(system: str, concurrency: int, timings: Sequence[RequestTiming], goal: Goal) -> RunFigures:
    served = [timing for timing in timings if timing.error is None]
    seconds = max(t.finished for t in timings) - min(t.started for t in timings)
    return RunFigures(
        system=system,
        concurrency=concurrency,
        num_requests=len(timings),
        num_errors=len(timings) - len(served),
        seconds=seconds,
        requests_per_second=len(served) / seconds,
        output_tokens_per_second=sum(t.num_tokens for t in served) / seconds,
        goodput_per_second=sum(goal.met_by(t) for t in served) / seconds,
        latency_ms=Percentiles.of([t.latency for t in served]),
        time_to_first_token_ms=Percentiles.of([t.time_to_first_token for t in served]),
        inter_token_latency_ms=Percentiles.of([gap for t in served for gap in t.token_gaps]),
    )
