"""From the records of a run to its figures. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .records import RequestRecord, Run, Sample

STAGES = ("queue", "tokenize", "embed", "prefill", "decode", "detokenize", "network")
Series = list[tuple[float, float]]  # (seconds since the run began, value)
_SHORTEST_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class StageFigures:
    """Milliseconds a request; `share` of the time of all requests together."""

    name: str
    p50: float
    p95: float
    share: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates are over the whole run. `inter_token`: each request's mean by the server's clock, since tokens that share a
    response arrive together. None: no request had such a figure."""

    served: int
    failed: int
    requests_per_second: float
    tokens_per_second: float
    total: Latency | None
    first_token: Latency | None
    inter_token: Latency | None
    longest_gap_ms: float
    stages: tuple[StageFigures, ...]


def figures_of(run: Run) -> Figures:
    served = [request for request in run.requests if request.error is None]
    return Figures(
        served=len(served),
        failed=len(run.requests) - len(served),
        requests_per_second=len(served) / run.seconds,
        tokens_per_second=sum(request.completion_tokens for request in served) / run.seconds,
        total=_latency([1000 * (request.finished - request.started) for request in served]),
        first_token=_latency(
            [1000 * (request.first_token - request.started) for request in served if request.first_token is not None]
        ),
        inter_token=_latency([_gap_ms(request) for request in served if request.completion_tokens > 1]),
        longest_gap_ms=max((request.longest_gap_ms for request in served), default=0.0),
        stages=stage_figures(served),
    )


def stage_figures(served: Sequence[RequestRecord]) -> tuple[StageFigures, ...]:
    if not served:
        return ()
    times = {name: [request.stages_ms[name] for request in served] for name in STAGES}
    total = sum(map(sum, times.values())) or 1.0
    return tuple(
        StageFigures(name, percentile(values, 0.5), percentile(values, 0.95), sum(values) / total)
        for name, values in times.items()
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Between the two ordered values around it, in proportion."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def loaded_part(run: Run) -> tuple[Sample, ...]:
    """The samples under full load: without the end, when no request follows those that finish. All of them where that
    leaves fewer than three."""
    loaded = tuple(sample for sample in run.samples if sample.at <= run.drain_at)
    return loaded if len(loaded) >= 3 else run.samples


def gauge(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> Series:
    return [(sample.at, value) for sample in samples if (value := read(sample)) is not None]


def rate(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> Series:
    """Of a counter, a second, at the end of each interval between two samples. Intervals too short for the kernel's
    clock ticks join the next one."""
    known, rates = gauge(samples, read), Series()
    then, before = known[0] if known else (0.0, 0.0)
    for at, value in known[1:]:
        if at - then >= _SHORTEST_INTERVAL:
            rates.append((at, max(value - before, 0.0) / (at - then)))
            then, before = at, value
    return rates


def mean_rate(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> float | None:
    known = gauge(samples, read)
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return None
    return max(known[-1][1] - known[0][1], 0.0) / (known[-1][0] - known[0][0])


def mean(series: Series) -> float | None:
    return statistics.fmean(value for _, value in series) if series else None


def cores_used(process: str) -> Callable[[Sample], float | None]:
    """For `rate`: the CPU seconds of a process, whose rate is cores."""
    return lambda sample: sample.host.cpu_seconds.get(process)


def traffic(sample: Sample) -> float | None:
    """For `rate`, on one interface: bytes in the busier direction so far."""
    ways = (sample.host.received_bytes, sample.host.sent_bytes)
    return None if None in ways else max(way for way in ways if way is not None)


def _gap_ms(request: RequestRecord) -> float:
    return request.stages_ms["decode"] / (request.completion_tokens - 1)


def _latency(values: Sequence[float]) -> Latency | None:
    return Latency(percentile(values, 0.5), percentile(values, 0.95)) if values else None
