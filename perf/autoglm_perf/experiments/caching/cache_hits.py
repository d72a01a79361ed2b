"""Kept answers through the whole path, on their own and beside streams that generate."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence

from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client

from autoglm_perf.baselines.analyzer import AnalyzerUnavailable, Sweep, find_binary, run_rate, run_sweep
from autoglm_perf.load.background import generating
from autoglm_perf.load.load import Question, ask_all, greedy
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.load.workload import Workload, reference_workload
from autoglm_perf.suite.arms import LATENCY, LATENCY_95, LATENCY_99, REQUESTS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.system.processes import busiest_threads, cpu_use, processes_of, run_queue_seconds

_METRICS = (REQUESTS, LATENCY, LATENCY_95, LATENCY_99)
_CONCURRENCIES = (1, 4, 16)
_PROMPTS = 8
_RATE = 100.0
_CLOSED, _OPEN = "closed loop of 16", f"open loop of {_RATE:g}/s"
_ALONE, _BESIDE = "alone", "beside 16 streams"
DESCRIPTION = Description(
    "cache-hits",
    "Cache hits",
    (
        "Kept answers through gRPC streaming and the ensemble: at least 1,000 a second with p95 of at most 20 "
        "ms, load generator included."
    ),
    _METRICS,
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
        pairs, waits = _beside(context, server, hits)
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
    return Found(tuple(arms + pairs), settings, samples, (cpu, *_factors(pairs), _where(waits)), baselines)


def _factors(pairs: Sequence[Arm]) -> list[str]:
    """What becomes of p99, in words."""
    found = []
    for loop in (_CLOSED, _OPEN):
        spreads = [one.spread(LATENCY_99) for one in pairs if one.label.startswith(loop)]
        alone, beside = (spread.median for spread in spreads if spread)
        found.append(
            f"p99 of hits, {loop}: beside 16 generating streams {beside / alone:.1f} times that of hits alone."
        )
    return found


def _where(waits: Mapping[str, Sequence[float]]) -> str:
    """`waits`: milliseconds a hit of the open loop."""
    alone, beside = (statistics.median(waits[kind]) for kind in (_ALONE, _BESIDE))
    return (
        "Where that goes: a hit passes four processes (tritonserver, tokenizer, engine, detokenizer). Their "
        f"threads, without those that compute, were ready and waited for a core for {alone:.2f} ms a hit "
        f"of the open loop alone, for {beside:.2f} ms beside the streams, whose computing keeps all "
        "cores busy (the streams' own responses wait in there, too)."
    )


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


def _beside(context: Context, server: LocalServer, hits: Workload) -> tuple[list[Arm], dict[str, list[float]]]:
    """Closed and open loop, each alone and beside 16 streams, alternating; and what a hit of the open loop waited for
    cores."""
    runs: dict[str, list[RunFigures]] = {
        f"{loop}, {kind}": [] for kind in (_ALONE, _BESIDE) for loop in (_CLOSED, _OPEN)
    }
    waits: dict[str, list[float]] = {_ALONE: [], _BESIDE: []}
    for _ in context.repeated("hits beside streams"):
        for kind, num_streams in ((_ALONE, 0), (_BESIDE, 16)):
            with generating(server.grpc_url, num_streams):
                runs[f"{_CLOSED}, {kind}"].append(figures(_CLOSED, 16, _closed(context, server, hits, 16)))
                timings, waited = _open_and_wait(context, server, hits)
                runs[f"{_OPEN}, {kind}"].append(figures(_OPEN, 16, timings))
                waits[kind].append(waited)
    return [arm(label, found, _METRICS) for label, found in runs.items()], waits


def _open_and_wait(context: Context, server: LocalServer, hits: Workload) -> tuple[list[RequestTiming], float]:
    pids = processes_of(server)
    computing = busiest_threads(pids["engine"], len(os.sched_getaffinity(0)))
    before = run_queue_seconds(pids.values(), computing)
    timings = _open(context, server, hits)
    return timings, 1e3 * (run_queue_seconds(pids.values(), computing) - before) / len(timings)


def _require_no_miss(server: LocalServer) -> None:
    """perf_analyzer tells nothing of answers, so the server is asked: only the requests that filled the cache
    missed."""
    with Client(server.grpc_url) as client:
        misses = client.stats().engine["cache_misses"]
    if misses != _PROMPTS:
        raise RuntimeError(f"{misses - _PROMPTS} requests that should have been hits were none")
