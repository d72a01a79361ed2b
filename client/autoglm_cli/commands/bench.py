"""`autoglm bench`"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from autoglm_cli.errors import CommandError, needs
from autoglm_cli.home import artifact_of
from autoglm_cli.options import shared
from autoglm_cli.options.connection import Connection, ConnectionOptions
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, is_exported, repository_folder


@grouped
def bench(
    concurrency: Annotated[
        list[int] | None,
        typer.Option("--concurrency", "-c", min=1, help="Requests in flight. Repeatable. \\[default: 1 and 16]"),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=1, max=64, help="Requests in each run.")] = 64,
    artifact: shared.Artifact = None,
    repository: shared.Repository = None,
    json: shared.Json = False,
    *,
    server: ConnectionOptions,
) -> None:
    """Measure a running server: prompts of 128 tokens, 64 new tokens each, greedy, streamed.

    Needs the source checkout's perf/ folder, which also compares with the naive baseline (make bench).

    \b
    Examples:
      autoglm bench
      autoglm bench -c 1 -c 8 -c 32 --json
    """
    connection = server.connection()
    workload = _workload(artifact, repository, server.model).first(requests)
    runs = [_measure(workload, number, connection).as_json() for number in concurrency or [1, 16]]
    if json:
        print_json({"workload": workload.name, "runs": runs})
    else:
        notes().print(_table(f"workload {workload.name}", runs))
    if failed := sum(run["num_errors"] for run in runs):
        raise CommandError(f"{failed} requests failed")


def _workload(artifact: Path | None, repository: Path | None, model: str) -> Any:
    """The reference prompts, of so many tokens of the model's."""
    workloads = _of_load("workload")
    folder = artifact_of(artifact) if artifact else artifact_folder(None, repository_folder(repository, model), model)
    if not is_exported(folder):
        raise CommandError(
            f"there is no exported model at {folder}, whose tokenizer makes the prompts; make one with `autoglm export`"
        )
    return workloads.reference_workload(workloads.load_tokenizer(folder))


def _measure(workload: Any, concurrency: int, to: Connection) -> Any:
    load, measures = _of_load("load"), _of_load("measures")
    with Progress(console=notes(), transient=True) as bar:
        task = bar.add_task(f"{concurrency} in flight", total=len(workload.prompts))
        timings = load.measure_load(
            to.urls[0],
            workload,
            concurrency,
            lambda count: bar.advance(task, count),
            model=to.model,
            tls=to.tls,
            headers=to.headers,
        )
    return measures.summarise(to.model, concurrency, timings, measures.Goal())


def _of_load(module: str) -> ModuleType:
    try:
        return needs(f"autoglm_perf.load.{module}", "test")
    except CommandError:
        raise CommandError(
            "this command needs the source checkout's perf/ folder: pip install -e '.[test]' there"
        ) from None


def _table(title: str, runs: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in ("in flight", "requests/s", "output tokens/s", "latency p50 / p95, ms", "first token p50 / p95, ms"):
        table.add_column(column, justify="right")
    for run in runs:
        rates = [f"{run[name]:,.1f}" for name in ("requests_per_second", "output_tokens_per_second")]
        times = [
            f"{run[name]['p50']:,.0f} / {run[name]['p95']:,.0f}" for name in ("latency_ms", "time_to_first_token_ms")
        ]
        table.add_row(str(run["concurrency"]), *rates, *times)
    return table
