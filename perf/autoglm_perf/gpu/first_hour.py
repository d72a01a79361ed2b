"""`make gpu-first-hour` (python -m autoglm_perf.gpu.first_hour): what a new card must be asked first, and one page of
its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .device import Gpu, NoGpu, best_runtime, find_gpu, why_not_precision, why_not_runtime
from .first_hour_page import page
from .first_hour_steps import FIGURES, RECORD, Step, steps
from .report import versions

STEPS = "steps.jsonl"
NOTICED = ("without a CUDA graph", "no fused kernel", "which is slower")  # of a step's output, worth a line on the page
_TAIL = 15  # lines of a step that failed
_RUNTIMES = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Outcome:
    """`noticed`: lines of the output that a reader must not miss; `tail`: the last ones, of a step that failed."""

    name: str
    status: int
    seconds: float
    noticed: list[str]
    tail: list[str]


Run = Callable[[Step], tuple[int, list[str]]]  # exit status, lines of output


def run_steps(plan: Sequence[Step], run: Run, say: Callable[[str], None] = print) -> list[Outcome]:
    """In order, as far as they make sense: a failure that decides what follows ends the hour."""
    outcomes = []
    for number, step in enumerate(plan, 1):
        say(f"[{number}/{len(plan)}] {step.name}, about {step.minutes} min: {step.what}")
        started = time.monotonic()
        status, lines = run(step)
        outcome = _outcome(step, status, lines, time.monotonic() - started)
        outcomes.append(outcome)
        say(f"        {'passed' if status == 0 else f'failed ({status})'} after {outcome.seconds / 60:.1f} min")
        if status and step.ends:
            say(f"Stopped: {step.ends}.")
            break
    return outcomes


def _outcome(step: Step, status: int, lines: Sequence[str], seconds: float) -> Outcome:
    noticed = list(dict.fromkeys(line.strip() for line in lines if any(words in line for words in NOTICED)))
    return Outcome(step.name, status, seconds, noticed, [line.rstrip() for line in lines[-_TAIL:]] if status else [])


def in_the_shell(folder: Path) -> Run:
    """Runs a step as a process of its own; its output is shown, and kept in `folder` under the step's name."""
    environment = {**os.environ, "AUTOGLM_GPU_RECORD": str(folder / RECORD), "PYTHONPATH": _path()}

    def run(step: Step) -> tuple[int, list[str]]:
        lines = []
        with (
            (folder / f"{step.name}.log").open("w", encoding="utf-8") as log,
            subprocess.Popen(
                step.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                sys.stdout.write(f"        {line}")
        return process.returncode, lines

    return run


def _path() -> str:
    """A check of the driver needs the engine's package and no installation."""
    return os.pathsep.join(part for part in ("model_repository/engine/1", os.environ.get("PYTHONPATH", "")) if part)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; none of a file that was never written."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_page(folder: Path, plan: Sequence[Step], path: Path, machine: dict[str, Any]) -> None:
    """From what lies in `folder`, so that the page can be made again without a card."""
    found = page(machine, plan, read_lines(folder / STEPS), read_lines(folder / RECORD), read_lines(folder / FIGURES))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found, encoding="utf-8")


def choose_runtime(gpu: Gpu) -> str:
    """The first of TensorRT's that runs here in bf16. Raises NoGpu."""
    runtime = best_runtime(gpu)
    if runtime not in _RUNTIMES:
        raise NoGpu(
            f"the first hour is TensorRT's; this machine has {runtime} only: {why_not_runtime('tensorrt', gpu)}"
        )
    if (reason := why_not_precision("bf16", runtime, gpu)) is not None:
        raise NoGpu(reason)
    return runtime


def machine_of(gpu: Gpu, runtime: str) -> dict[str, Any]:
    return {**asdict(gpu), "capability": gpu.capability_text, "runtime": runtime, "packages": versions()}


def main(
    folder: Annotated[Path, typer.Option(help="For artifacts, logs and what is found; about 40 GB.")] = Path(
        "build/first-hour"
    ),
    write: Annotated[Path, typer.Option(help="The page.")] = Path("docs/gpu-first-hour.md"),
    only: Annotated[str, typer.Option(help="Names of steps with commas between; all without it.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Ask a new card the first questions, in the order in which an answer decides what follows, and write one page.

    \b
    Examples:
      make gpu-first-hour
      make gpu-first-hour HOUR_FLAGS="--plan"
      make gpu-first-hour HOUR_FLAGS="--only capacity,cost-short,cost-capacity"
    """
    try:
        chosen = _chosen(steps("tensorrt", folder), only)
        if plan:
            _tell(chosen)
            return
        gpu = find_gpu()
        runtime = choose_runtime(gpu)
    except (NoGpu, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    chosen = _chosen(steps(runtime, folder), only)
    _tell(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, FIGURES):
        (folder / name).unlink(missing_ok=True)
    outcomes = run_steps(chosen, in_the_shell(folder))
    write_lines(folder / STEPS, map(asdict, outcomes))
    write_page(folder, chosen, write, machine_of(gpu, runtime))
    typer.echo(f"page: {write}")
    raise typer.Exit(int(any(outcome.status for outcome in outcomes)))


def _chosen(plan: Sequence[Step], only: str) -> tuple[Step, ...]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [step.name for step in plan]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no step {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(step for step in plan if not names or step.name in names)


def _tell(plan: Sequence[Step]) -> None:
    typer.echo(f"{len(plan)} steps, about {sum(step.minutes for step in plan)} min in all:")
    for step in plan:
        end = f" (where it fails, the hour ends: {step.ends})" if step.ends else ""
        typer.echo(f"  {step.name}, {step.minutes} min: {step.what}{end}")


if __name__ == "__main__":
    typer.run(main)
