"""Kept answers through the whole path, on their own and beside streams that generate."""

from __future__ import annotations

import os
from collections.abc import Sequence

from autoglm_client import Client
from autoglm_client.local_server import LocalServer

from autoglm_perf.analyzer import AnalyzerUnavailable, Sweep, find_binary, run_rate, run_sweep
from autoglm_perf.arms import LATENCY, LATENCY_95, LATENCY_99, REQUESTS, arm, figures
from autoglm_perf.background import generating
from autoglm_perf.context import Context
from autoglm_perf.experiment import Arm, Description, Found
from autoglm_perf.load import Question, ask_all, greedy
from autoglm_perf.measures import RequestTiming, RunFigures
from autoglm_perf.processes import busiest_threads, cpu_use, lower_priority, processes_of
from autoglm_perf.suite import CannotRun
from autoglm_perf.workload import Workload, reference_workload

_METRICS = (REQUESTS, LATENCY, LATENCY_95, LATENCY_99)
_CONCURRENCIES = (1, 4, 16)
_PROMPTS = 8
_RATE = 100.0
_NICE = 10
_CLOSED, _OPEN = "closed loop of 16", f"open loop of {_RATE:g}/s"
DESCRIPTION = Description(
    "cache-hits",
    "Cache hits",
    "Kept answers through gRPC streaming and the ensemble: at least 1,000 a second with p95 of at most 20 ms, load generator included.",
    _METRICS,
)
_WHERE = (
    "Where a hit's time goes beside generating streams: the two threads that compute keep all cores busy, and a hit passes "
    "four processes (tritonserver, tokenizer, engine, detokenizer); each of them waits for the kernel to end a compute thread's "
    f"slice. The rows with nice {_NICE} are the same server with only those threads' priority lowered: what they take off is that wait."
)


def run(context: Context) -> Found:
    try:
        find_binary()
    except AnalyzerUnavailable as error:
        raise CannotRun(str(error)) from None
    hits = reference_workload(context.tokenizer, num_prompts=_PROMPTS, seed=next(context.seeds))
    with context.server({"AUTOGLM_CACHE_TTL_SECONDS": "3600"}) as server:
        _keep(server, hits)
        arms = [*_alone(context, server, hits), _python(context, server, hits)]
        cpu = _cpu_line(context, server, hits)
        pairs = _beside(context, server, hits)
        _require_no_miss(server)
    alone = {loop: f"{loop}, alone" for loop in (_CLOSED, _OPEN)}
    baselines = {one.label: alone[_OPEN if one.label.startswith(_OPEN) else _CLOSED] for one in pairs}
    settings = {
        "hits": f"{_PROMPTS} prompts of 128 tokens, 64 kept tokens each, streamed, cache = only",
        "load generator": "perf_analyzer, on the same cores; AsyncClient: one Python process",
        "open loop": f"{_RATE:g} requests a second, Poisson",
        "beside": "16 streams that generate all the time",
    }
    samples = f"{_count(context):,} requests, {_open_count(context):,} of the open loop"
    return Found(tuple(arms + pairs), settings, samples, (cpu, *_factors(pairs), _WHERE), baselines)


def _factors(pairs: Sequence[Arm]) -> list[str]:
    """What becomes of p99, in words."""
    found = []
    for loop in (_CLOSED, _OPEN):
        alone, *others = [
            spread.median for one in pairs if one.label.startswith(loop) and (spread := one.spread(LATENCY_99))
        ]
        beside, nice = others
        found.append(
            f"p99 of hits, {loop}: {beside / alone:.1f} times that of hits alone beside 16 generating streams, "
            f"{nice / alone:.1f} times with the compute threads at nice {_NICE}."
        )
    return found


def _count(context: Context) -> int:
    return context.size(3_000, 300)


def _open_count(context: Context) -> int:
    return context.size(1_000, 100)


def _keep(server: LocalServer, hits: Workload) -> None:
    ask_all(server.grpc_url, [Question(prompt, greedy(hits.max_tokens)) for prompt in hits.prompts], 8)


def _closed(context: Context, server: LocalServer, hits: Workload, concurrency: int) -> list[RequestTiming]:
    """`cache = only`: what is no hit is an error."""
    sweep = Sweep((concurrency,), _count(context), cache="only")
    return run_sweep(server.grpc_url, hits, sweep)[concurrency]


def _closed_16(context: Context, server: LocalServer, hits: Workload) -> list[RequestTiming]:
    return _closed(context, server, hits, 16)


def _open(context: Context, server: LocalServer, hits: Workload) -> list[RequestTiming]:
    return run_rate(server.grpc_url, hits, _RATE, _open_count(context), cache="only")


def _alone(context: Context, server: LocalServer, hits: Workload) -> list[Arm]:
    runs: dict[str, list[RunFigures]] = {f"{number} in flight": [] for number in _CONCURRENCIES}
    for _ in context.repeated("hits alone"):
        for number, (label, found) in zip(_CONCURRENCIES, runs.items(), strict=True):
            found.append(figures(label, number, _closed(context, server, hits, number)))
    return [arm(label, found, _METRICS) for label, found in runs.items()]


def _python(context: Context, server: LocalServer, hits: Workload) -> Arm:
    label, runs = "16 in flight, AsyncClient", []
    prompts = hits.prompts * (_count(context) // len(hits.prompts))
    questions = [Question(prompt, greedy(hits.max_tokens, cache="only")) for prompt in prompts]
    for _ in context.repeated(label):
        answers = ask_all(server.grpc_url, questions, 16)
        runs.append(figures(label, 16, [answer.timing for answer in answers]))
    return arm(label, runs, _METRICS)


def _cpu_line(context: Context, server: LocalServer, hits: Workload) -> str:
    with cpu_use(server) as use:
        timings = _closed(context, server, hits, 16)
    return f"16 in flight: {use.line(len(timings))}"


def _beside(context: Context, server: LocalServer, hits: Workload) -> list[Arm]:
    """Closed and open loop, each alone and beside 16 streams, alternating. Then beside them with the compute threads at a
    lower priority: not every user may raise it again, so that comes last."""
    runs: dict[str, list[RunFigures]] = {}
    for _ in context.repeated("hits beside streams"):
        for kind, num_streams in (("alone", 0), ("beside 16 streams", 16)):
            with generating(server.grpc_url, num_streams):
                _both_loops(context, server, hits, kind, runs)
    for _ in context.repeated(f"hits beside streams at nice {_NICE}"):
        with generating(server.grpc_url, 16):
            lower_priority(busiest_threads(processes_of(server)["engine"], len(os.sched_getaffinity(0))), _NICE)
            _both_loops(context, server, hits, f"beside 16 streams, nice {_NICE}", runs)
    return [arm(label, found, _METRICS) for label, found in runs.items()]


def _both_loops(
    context: Context, server: LocalServer, hits: Workload, kind: str, runs: dict[str, list[RunFigures]]
) -> None:
    for loop, measure in ((_CLOSED, _closed_16), (_OPEN, _open)):
        runs.setdefault(f"{loop}, {kind}", []).append(figures(loop, 16, measure(context, server, hits)))


def _require_no_miss(server: LocalServer) -> None:
    """perf_analyzer tells nothing of answers, so the server is asked: only the requests that filled the cache missed."""
    with Client(server.grpc_url) as client:
        misses = client.stats().engine["cache_misses"]
    if misses != _PROMPTS:
        raise RuntimeError(f"{misses - _PROMPTS} requests that should have been hits were none")
