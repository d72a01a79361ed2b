"""`make bench`: workload W through the whole server, beside the naive baseline, in one run on one machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoglm_client.local_server import LocalServer
from rich.console import Console
from rich.progress import Progress

from .analyzer import Sweep, run_sweep
from .baseline import measure_naive, naive_server
from .load import measure_load
from .measures import Goal, RequestTiming, RunFigures, summarise
from .report import append_jsonl, show
from .workload import Workload


@dataclass(frozen=True, slots=True)
class BenchSettings:
    repeats: int = 3
    naive_requests: int = 8
    concurrencies: tuple[int, ...] = (1, 16)
    sweep: Sweep | None = None
    results: Path = Path("perf/results/bench.jsonl")


def bench_ours(url: str, workloads: Iterator[Workload], settings: BenchSettings, console: Console) -> list[RunFigures]:
    """Every run takes a workload of its own: prompts that were asked before would start from their slots."""
    _measure_ours(url, next(workloads).first(16), 16, console, "warming up")
    runs = []
    for concurrency in settings.concurrencies:
        for _ in range(settings.repeats):
            workload = next(workloads)
            # One request at a time takes that much longer for the same figure.
            share = workload if concurrency > 1 else workload.first(max(8, len(workload.prompts) // 8))
            timings = _measure_ours(url, share, concurrency, console, f"autoglm, {concurrency} in flight")
            runs.append(summarise("autoglm", concurrency, timings, Goal()))
    return runs


def _measure_ours(url: str, workload: Workload, concurrency: int, console: Console, label: str) -> list[RequestTiming]:
    return _with_progress(console, label, len(workload.prompts), partial(measure_load, url, workload, concurrency))


def bench_analyzer(url: str, workload: Workload, sweep: Sweep, console: Console) -> list[RunFigures]:
    with console.status("perf_analyzer sweeps the ensemble ..."):
        by_concurrency = run_sweep(url, workload, sweep)
    return [summarise("perf_analyzer", c, timings, Goal()) for c, timings in by_concurrency.items()]


def bench_naive(checkpoint: Path, workload: Workload, settings: BenchSettings, console: Console) -> RunFigures:
    share = workload.first(settings.naive_requests)
    console.print("starting the naive baseline: transformers generate, float32, one request at a time ...")
    with naive_server(checkpoint) as url:
        measure_naive(url, workload.first(1), lambda count: None)  # warm up, as the other server was
        timings = _with_progress(
            console, "transformers generate", len(share.prompts), partial(measure_naive, url, share)
        )
    return summarise("transformers", 1, timings, Goal())


def conclude(console: Console, ours: list[RunFigures], naive: RunFigures | None) -> None:
    """The ratio that the project promises, from medians with their spread."""
    for concurrency in sorted({run.concurrency for run in ours}):
        rates = [run.output_tokens_per_second for run in ours if run.concurrency == concurrency]
        spread = f"{min(rates):.0f} ... {max(rates):.0f}"
        console.print(f"{concurrency:3} in flight: {statistics.median(rates):.0f} output tokens/s (runs: {spread})")
    if naive is not None:
        busiest = max(run.concurrency for run in ours)
        best = statistics.median(run.requests_per_second for run in ours if run.concurrency == busiest)
        ratio = best / naive.requests_per_second
        console.print(f"[bold]{ratio:.1f} times[/] the requests/s of the naive default, same run, same machine")


def write(settings: BenchSettings, workload: Workload, artifact: dict[str, str], runs: list[RunFigures]) -> None:
    context = {
        "workload": workload.name,
        "prompt_tokens": workload.prompt_tokens,
        "max_tokens": workload.max_tokens,
        "artifact": artifact,
    }
    append_jsonl(settings.results, context, runs)


def show_runs(console: Console, workload: Workload, runs: list[RunFigures]) -> None:
    title = f"{workload.name}: {workload.prompt_tokens} prompt tokens, {workload.max_tokens} new tokens, greedy"
    show(console, title, runs)


def _with_progress(
    console: Console, label: str, total: int, run: Callable[[Callable[[int], None]], list[RequestTiming]]
) -> list[RequestTiming]:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        return run(lambda count: bar.advance(task, count))


@contextmanager
def serving(repository: Path, artifact: Path, console: Console) -> Iterator[str]:
    """A server of its own for the measurement; yields its gRPC address."""
    console.print("starting tritonserver ...")
    with LocalServer(repository, artifact=artifact) as server:
        yield server.grpc_url
