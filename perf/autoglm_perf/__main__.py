"""`make bench` (python -m autoglm_perf): serve the exported SmolLM2 and measure it beside the naive baseline."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .analyzer import Sweep
from .bench import BenchSettings, bench_analyzer, bench_naive, bench_ours, conclude, serving, show_runs, write
from .report import machine
from .workload import load_tokenizer, reference_workload

REPOSITORY = Path("model_repository")
ARTIFACT = REPOSITORY / "engine" / "1" / "artifact"


def main(
    artifact: Annotated[Path, typer.Option(help="The exported model; exported from smollm2 where missing.")] = ARTIFACT,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement of ours.")] = 3,
    naive_requests: Annotated[int, typer.Option(min=0, help="Requests to the naive baseline; 0 leaves it out.")] = 8,
    analyzer: Annotated[bool, typer.Option(help="Sweep with NVIDIA's perf_analyzer, too.")] = True,
) -> None:
    """Workload W: 64 distinct prompts of 128 tokens, 64 new tokens each, greedy, through Triton with streaming.

    Examples:

        make bench

        make bench BENCH_FLAGS="--naive-requests 0 --repeats 5"
    """
    from autoglm_engine.manifest import Manifest
    from autoglm_export.bundled import find_bundled

    console = Console()
    settings = BenchSettings(repeats, naive_requests, sweep=Sweep() if analyzer else None)
    _ensure_artifact(artifact, console)
    manifest = Manifest.load(artifact)
    tokenizer = load_tokenizer(artifact)
    workloads = (reference_workload(tokenizer, seed=seed) for seed in itertools.count())
    workload = next(workloads)
    console.print(f"{machine()['cpu']}, {machine()['cores']} cores; {manifest.model_name} {manifest.precision}")
    with serving(REPOSITORY, artifact, console) as url:
        runs = ours = bench_ours(url, workloads, settings, console)
        if settings.sweep is not None:
            runs = runs + bench_analyzer(url, workload, settings.sweep, console)
    naive = bench_naive(find_bundled("smollm2"), workload, settings, console) if naive_requests else None
    runs = runs + ([naive] if naive else [])
    show_runs(console, workload, runs)
    conclude(console, ours, naive)
    write(settings, workload, {"runtime": manifest.runtime, "precision": manifest.precision}, runs)
    console.print(f"figures: {settings.results}")


def _ensure_artifact(artifact: Path, console: Console) -> None:
    if (artifact / "manifest.json").exists():
        return
    from autoglm_export.export import export

    console.print("exporting smollm2 ...")
    export("smollm2", artifact)


if __name__ == "__main__":
    typer.run(main)
