"""NVIDIA's perf_analyzer sweeps the ensemble; what Triton counted for each composing model stands beside it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from autoglm_perf.baselines.analyzer import AnalyzerUnavailable, Sweep, find_binary, run_sweep
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found
from autoglm_perf.suite.suite import CannotRun

_METRICS = (TOKENS, REQUESTS, LATENCY, FIRST_TOKEN)
_COMPOSING = ("tokenizer", "engine", "detokenizer")
DESCRIPTION = Description(
    "analyzer-sweep",
    "perf_analyzer",
    "NVIDIA's own load generator sees the same server: output grows with concurrency.",
    _METRICS,
)


def run(context: Context) -> Found:
    try:
        find_binary()
    except AnalyzerUnavailable as error:
        raise CannotRun(str(error)) from None
    concurrencies = (1, 16) if context.quick else (1, 4, 16)
    with context.server() as server:
        arms = _sweep(context, server.grpc_url, concurrencies)
        models = [_composing(server.http_url, name) for name in _COMPOSING]
    return Found(
        arms, {"streaming": "gRPC, asynchronous"}, f"{context.size(32, 4)} requests or 2 a stream", tuple(models)
    )


def _sweep(context: Context, url: str, concurrencies: tuple[int, ...]) -> tuple[Arm, ...]:
    runs: dict[int, list[RunFigures]] = {number: [] for number in concurrencies}
    for _ in context.repeated("perf_analyzer"):
        sweep = Sweep(num_requests=context.size(32, 4))
        for number in concurrencies:
            one = Sweep((number,), sweep.num_requests)
            runs[number].append(figures("perf_analyzer", number, run_sweep(url, context.fresh_workload(), one)[number]))
    return tuple(arm(f"{number} in flight", runs[number], _METRICS) for number in concurrencies)


def _composing(url: str, model: str) -> str:
    with urllib.request.urlopen(f"{url}/v2/models/{model}/stats", timeout=10) as response:
        return composing_line(model, json.load(response)["model_stats"][0])


def composing_line(model: str, stats: dict[str, Any]) -> str:
    """Triton's counters are nanoseconds over all requests. A decoupled model's compute ends when it took the
    request."""
    inference = stats["inference_stats"]
    count = max(1, int(inference["success"]["count"]))
    queue, compute = (int(inference[part]["ns"]) / count / 1e6 for part in ("queue", "compute_infer"))
    return (
        f"Composing model {model}: {count} requests, {stats['execution_count']} executions; queue {queue:.2f} "
        f"ms, compute {compute:.2f} ms each."
    )
