"""The promise: requests per second against the default that most people start with."""

from __future__ import annotations

from autoglm_cli.server.local_server import LocalServer
from autoglm_export.checkpoint.bundled import find_bundled

from autoglm_perf.baselines.baseline import measure_naive, naive_server
from autoglm_perf.load.load import measure_load
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, MEMORY, REQUESTS, TOKENS, arm, figures, with_values
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Published
from autoglm_perf.system.processes import MEBIBYTE, PeakMemory, cpu_use, processes_of

_METRICS = (REQUESTS, TOKENS, LATENCY, FIRST_TOKEN, MEMORY)
DESCRIPTION = Description(
    "whole-system",
    "Whole system",
    (
        "Workload W through the Triton ensemble answers more requests a second than transformers generate, one "
        "at a time behind HTTP."
    ),
    _METRICS,
    (Published("850 ms, 42 QPS, 18.3 GB", "320 ms, 117 QPS, 15.1 GB"), Published("QPS", "QPS +600%")),
)


def run(context: Context) -> Found:
    with context.server() as server:
        measure_load(server.grpc_url, context.fresh_workload(16), 16)
        ours = tuple(_ours(context, server, number) for number in (16, 1))
        cpu = _cpu_line(context, server)
    settings = {
        "naive": "float32, generate, whole answers",
        "ours": context.artifact.name,
        "W": "128 tokens in, 64 out, greedy",
        "memory": "of all processes of the server, pages they share counted once (PSS), without the load generator",
    }
    samples = (
        f"{context.size(64, 16)} requests at 16 in flight, {context.size(8, 2)} at one, {context.size(8, 1)} naive"
    )
    return Found((_naive(context), *ours), settings, samples, (cpu,))


def _ours(context: Context, server: LocalServer, concurrency: int) -> Arm:
    count = context.size(64, 16) if concurrency > 1 else context.size(8, 2)
    label, runs, memory = f"ours, {concurrency} in flight", list[RunFigures](), list[float]()
    for _ in context.repeated(label):
        with PeakMemory(processes_of(server)) as peak:
            timings = measure_load(server.grpc_url, context.fresh_workload(count), concurrency)
        runs.append(figures(label, concurrency, timings))
        memory.append(peak.proportional / MEBIBYTE)
    return with_values(arm(label, runs, _METRICS[:-1]), MEMORY, memory)


def _cpu_line(context: Context, server: LocalServer) -> str:
    count = context.size(64, 16)
    with cpu_use(server) as use:
        measure_load(server.grpc_url, context.fresh_workload(count), 16)
    return f"16 in flight: {use.line(count)}"


def _naive(context: Context) -> Arm:
    label, runs, memory = "transformers generate", list[RunFigures](), list[float]()
    context.say("starting transformers generate behind HTTP")
    with naive_server(find_bundled("smollm2")) as (url, pid):
        measure_naive(url, context.fresh_workload(1), lambda count: None)
        for _ in context.repeated(label):
            with PeakMemory({label: pid}) as peak:
                timings = measure_naive(url, context.fresh_workload(context.size(8, 1)), lambda count: None)
            runs.append(figures(label, 1, timings))
            memory.append(peak.proportional / MEBIBYTE)
    return with_values(arm(label, runs, (REQUESTS, TOKENS, LATENCY)), MEMORY, memory)
