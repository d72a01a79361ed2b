"""From the figures of repeated runs to an arm of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from autoglm_perf.load.measures import Goal, RequestTiming, RunFigures, summarise

from .experiment import Arm, Metric

TOKENS = Metric("output tokens", "1/s")
REQUESTS = Metric("requests", "1/s")
LATENCY = Metric("latency p50", "ms", higher_is_better=False)
LATENCY_95 = Metric("latency p95", "ms", higher_is_better=False)
LATENCY_99 = Metric("latency p99", "ms", higher_is_better=False)
MEMORY = Metric("peak memory", "MiB", higher_is_better=False)
FIRST_TOKEN = Metric("first token p50", "ms", higher_is_better=False)

_READ: dict[str, Callable[[RunFigures], float]] = {
    TOKENS.name: lambda run: run.output_tokens_per_second,
    REQUESTS.name: lambda run: run.requests_per_second,
    LATENCY.name: lambda run: run.latency_ms.p50,
    LATENCY_95.name: lambda run: run.latency_ms.p95,
    LATENCY_99.name: lambda run: run.latency_ms.p99,
    FIRST_TOKEN.name: lambda run: run.time_to_first_token_ms.p50,
}


class RequestsFailed(RuntimeError):
    """A figure over requests that partly failed says nothing."""


def arm(label: str, runs: Sequence[RunFigures], metrics: Sequence[Metric]) -> Arm:
    """Raises RequestsFailed where a request of any run failed."""
    if failed := sum(run.num_errors for run in runs):
        raise RequestsFailed(f"{failed} of {sum(run.num_requests for run in runs)} requests of {label!r} failed")
    return Arm(label, {metric.name: tuple(_READ[metric.name](run) for run in runs) for metric in metrics})


def with_values(arm: Arm, metric: Metric, values: Sequence[float]) -> Arm:
    """With a metric that timings do not tell."""
    return replace(arm, values={**arm.values, metric.name: tuple(values)})


def figures(label: str, concurrency: int, timings: Sequence[RequestTiming]) -> RunFigures:
    if errors := [timing.error for timing in timings if timing.error]:
        raise RequestsFailed(
            f"{len(errors)} of {len(timings)} requests of {label!r} failed, the first with: {errors[0]}"
        )
    return summarise(label, concurrency, timings, Goal())
