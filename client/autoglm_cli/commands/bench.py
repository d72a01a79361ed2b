"""`autoglm bench`"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from autoglm_cli import arguments as args
from autoglm_cli.connecting import Connection, connecting
from autoglm_cli.errors import CommandError, needs
from autoglm_cli.home import artifact_of
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, is_exported, repository_folder


@connecting
def bench(
    connection: Connection,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            "--concurrency", "-c", min=1, help="Requests in flight; may be given several times. \\[default: 1 and 16]"
        ),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=1, max=64, help="Requests a run.")] = 64,
    artifact: args.Artifact = None,
    repository: args.Repository = None,
    model: args.Model = args.DEFAULT_MODEL,
    json: args.Json = False,
) -> None:
    """Measure a running server: prompts of 128 tokens, 64 new tokens each, greedy, streamed.

    Needs the source checkout's perf/ folder, which also compares with the naive baseline (make bench).

    \b
    Examples:
      autoglm bench
      autoglm bench -c 1 -c 8 -c 32 --json
    """
    try:
        load = needs("autoglm_perf.load.load", "test")
        workloads, measures = (needs(f"autoglm_perf.load.{name}", "test") for name in ("workload", "measures"))
    except CommandError:
        raise CommandError(
            "this command needs the source checkout's perf/ folder: pip install -e '.[test]' there"
        ) from None
    folder = artifact_of(artifact) if artifact else artifact_folder(None, repository_folder(repository, model), model)
    if not is_exported(folder):
        raise CommandError(f"there is no exported model at {folder}, whose tokenizer counts the prompts' tokens")
    workload = workloads.reference_workload(workloads.load_tokenizer(folder)).first(requests)
    runs = []
    for number in concurrency or [1, 16]:
        with Progress(console=notes(), transient=True) as bar:
            task = bar.add_task(f"{number} in flight", total=len(workload.prompts))
            timings = load.measure_load(
                connection.urls[0],
                workload,
                number,
                lambda count, bar=bar, task=task: bar.advance(task, count),
                model=model,
                tls=connection.tls,
                headers=connection.headers,
            )
        runs.append(measures.summarise(model, number, timings, measures.Goal()))
    if json:
        print_json({"workload": workload.name, "runs": [run.as_json() for run in runs]})
    else:
        notes().print(_table(f"workload {workload.name}", [run.as_json() for run in runs]))
    if any(run.num_errors for run in runs):
        raise CommandError(f"{sum(run.num_errors for run in runs)} requests failed")


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
