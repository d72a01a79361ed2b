"""`make bench` (python -m autoglm_perf): every experiment of the suite, a page, its JSON and a summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autoglm_perf.load.workload import load_tokenizer
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.outputs import Outputs, is_whole, outputs_of
from autoglm_perf.suite.registry import UnknownExperiment, load, load_all
from autoglm_perf.suite.report import machine
from autoglm_perf.suite.results import append_jsonl, write_json
from autoglm_perf.suite.suite import Result, run_all

from .suite import markdown, page

REPOSITORY = Path("model_repository")
ARTIFACT = REPOSITORY / "engine" / "1" / "artifact"
HISTORY = Path("perf/results/bench.jsonl")
QUICK = "A quick run on whatever else this machine does: figures for seeing that it works, not for comparing."


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="An experiment by name; may be repeated. Default: all but the soak.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A few seconds each, to see that it works; never touches --summary.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side; a quick run makes one.")] = 3,
    artifact: Annotated[Path, typer.Option(help="The exported model; exported from smollm2 where missing.")] = ARTIFACT,
    output: Annotated[Path, typer.Option(help="Folder of index.html and results.json.")] = Path("perf/report"),
    summary: Annotated[Path, typer.Option(help="Document with the markers.")] = Path("docs/performance.md"),
    soak_minutes: Annotated[
        float, typer.Option(min=0.1, help="How long the soak lasts; one of 20 or more rewrites its summary.")
    ] = 20.0,
    show: Annotated[bool, typer.Option("--list", help="Say which experiments there are.")] = False,
) -> None:
    """Measure each claim of this project; the summary document is rewritten by whole runs only.

    Examples:

        make bench

        make bench BENCH_FLAGS="--only connections --only calls"

        python -m autoglm_perf --only scheduler-overhead --quick

        make soak BENCH_FLAGS="--soak-minutes 3"
    """
    console = Console()
    try:
        experiments = load(only or ())
    except UnknownExperiment as error:
        raise typer.BadParameter(str(error)) from None
    if show:
        for experiment in load_all():
            console.print(f"{experiment.description.name:20} {experiment.description.claim}")
        return
    _ensure_artifact(artifact, console)
    tokenizer = load_tokenizer(artifact)
    context = Context(REPOSITORY, artifact, tokenizer, quick, 1 if quick else repeats, console.print, soak_minutes)
    places = outputs_of([experiment.description.name for experiment in experiments])
    about = _about(artifact, places.repeats or context.repeats)
    results = run_all(experiments, context, lambda result: _tell(console, result))
    folder = output / "quick" if quick else output
    document = summary if is_whole(only or (), quick=quick, soak_minutes=soak_minutes) else folder / places.summary
    _write(results, about, places, folder, document, is_quick=quick)
    console.print(f"report: {folder / places.page}; summary: {document}")
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _write(
    results: Sequence[Result], about: dict[str, Any], places: Outputs, folder: Path, document: Path, *, is_quick: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / places.page).write_text(page.render(results, about, QUICK if is_quick else ""), encoding="utf-8")
    write_json(folder / places.data, results, about)
    if not is_quick:
        append_jsonl(HISTORY, results, about)
    markdown.write_summary(document, markdown.render(results, about, places.title), places.command)


def _tell(console: Console, result: Result) -> None:
    console.print(f"  {result.status} after {result.seconds:.0f} s {result.reason}".rstrip(), markup=False)


def _about(artifact: Path, repeats: int) -> dict[str, Any]:
    from autoglm_engine.manifest import Manifest

    manifest, here = Manifest.load(artifact), machine()
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    served = f"{manifest.model_name}, {manifest.runtime} {manifest.precision}"
    return {**here, "time": stamp, "artifact": served, "repeats": repeats}


def _ensure_artifact(artifact: Path, console: Console) -> None:
    if (artifact / "manifest.json").exists():
        return
    from autoglm_export.export import export

    console.print("exporting smollm2 ...")
    export("smollm2", artifact, max_length=1024)  # alike on every machine


if __name__ == "__main__":
    typer.run(main)
