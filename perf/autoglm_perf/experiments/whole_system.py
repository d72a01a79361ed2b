"""The promise: requests per second against the default that most people start with."""

from __future__ import annotations

from autoglm_export.bundled import find_bundled

from autoglm_perf.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.baseline import measure_naive, naive_server
from autoglm_perf.context import Context
from autoglm_perf.experiment import Arm, Description, Found, Published
from autoglm_perf.load import measure_load

_METRICS = (REQUESTS, TOKENS, LATENCY, FIRST_TOKEN)
DESCRIPTION = Description(
    "whole-system",
    "Whole system",
    "Workload W through the Triton ensemble answers more requests a second than transformers generate, one at a time behind HTTP.",
    _METRICS,
    (Published("850 ms, 42 QPS, 18.3 GB", "320 ms, 117 QPS, 15.1 GB"), Published("QPS", "QPS +600%")),
)


def run(context: Context) -> Found:
    with context.server() as server:
        url = server.grpc_url
        measure_load(url, context.fresh_workload(16), 16)
        ours = tuple(_ours(context, url, number) for number in (16, 1))
    settings = {
        "naive": "float32, generate, whole answers",
        "ours": context.artifact.name,
        "W": "128 tokens in, 64 out, greedy",
    }
    samples = (
        f"{context.size(64, 16)} requests at 16 in flight, {context.size(8, 2)} at one, {context.size(8, 1)} naive"
    )
    return Found((_naive(context), *ours), settings, samples)


def _ours(context: Context, url: str, concurrency: int) -> Arm:
    count = context.size(64, 16) if concurrency > 1 else context.size(8, 2)
    label = f"ours, {concurrency} in flight"
    runs = [
        figures(label, concurrency, measure_load(url, context.fresh_workload(count), concurrency))
        for _ in context.repeated(label)
    ]
    return arm(label, runs, _METRICS)


def _naive(context: Context) -> Arm:
    label = "transformers generate"
    context.say("starting transformers generate behind HTTP")
    with naive_server(find_bundled("smollm2")) as url:
        measure_naive(url, context.fresh_workload(1), lambda count: None)
        runs = [
            figures(label, 1, measure_naive(url, context.fresh_workload(context.size(8, 1)), lambda count: None))
            for _ in context.repeated(label)
        ]
    return arm(label, runs, (REQUESTS, TOKENS, LATENCY))
