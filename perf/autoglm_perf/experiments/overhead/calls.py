"""Synchronous calls one at a time against asynchronous streams, several at once."""

from __future__ import annotations

import time

from autoglm_client import Client

from autoglm_perf.load.load import measure_load
from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.load.workload import Workload
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Published

_METRICS = (REQUESTS, LATENCY, FIRST_TOKEN)
_CONCURRENCIES = (1, 4, 16)
DESCRIPTION = Description(
    "calls",
    "Calls",
    (
        "Asynchronous streams keep the server's batch full, and show their first token long before a whole "
        "answer would come."
    ),
    _METRICS,
    (Published("120 ms, 850 QPS", "45 ms, 2,100 QPS"),),
)


def run(context: Context) -> Found:
    with context.server() as server:
        url = server.grpc_url
        measure_load(url, context.fresh_workload(16), 16)
        arms = (_synchronous(context, url), *(_streams(context, url, number) for number in _CONCURRENCIES))
    samples = f"{context.size(8, 2)} requests at one in flight, {context.size(64, 16)} above"
    return Found(arms, {"requests": "128 tokens in, 64 out, greedy"}, samples)


def _synchronous(context: Context, url: str) -> Arm:
    label, count = "synchronous, whole answers", context.size(8, 2)
    runs = [figures(label, 1, _ask_each(url, context.fresh_workload(count))) for _ in context.repeated(label)]
    return arm(label, runs, _METRICS)


def _ask_each(url: str, workload: Workload) -> list[RequestTiming]:
    timings = []
    with Client(url) as client:
        for prompt in workload.prompts:
            started = time.monotonic()
            client.generate(prompt, max_tokens=workload.max_tokens, temperature=0.0, ignore_eos=True, cache="bypass")
            now = time.monotonic()
            timings.append(RequestTiming(started, now, now, workload.max_tokens, ()))
    return timings


def _streams(context: Context, url: str, concurrency: int) -> Arm:
    label = f"streams, {concurrency} in flight"
    count = context.size(8, 2) if concurrency == 1 else context.size(64, 16)
    runs = [
        figures(label, concurrency, measure_load(url, context.fresh_workload(count), concurrency))
        for _ in context.repeated(label)
    ]
    return arm(label, runs, _METRICS)
