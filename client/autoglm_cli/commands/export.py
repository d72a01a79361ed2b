"""`autoglm export`"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoglm_cli.device_lines import device_lines
from autoglm_cli.errors import CommandError, needs
from autoglm_cli.options import shared
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, export_folder, repository_folder

from .runtime_choice import choice_line

ExportProgress = Callable[[str, float], None]


def export(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Hugging Face folder, .gguf file, or smollm2 (a bundled model).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Artifact folder. \\[default: a checkout's own, else as with --name]"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Keep it under this name, beside others: `autoglm models`. \\[default: the checkpoint's]"
        ),
    ] = None,
    runtime: shared.Runtime = None,
    precision: shared.Precision = None,
    max_slots: Annotated[int | None, typer.Option("--max-slots", help="Most requests in flight.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Most tokens of prompt and answer.")] = None,
    prefill_chunk: Annotated[
        int | None, typer.Option("--prefill-chunk", help="Prompt tokens computed in one step.")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option("--kv-dtype", help="TensorRT: type of the key/value cache, bf16 or fp16.")
    ] = None,
    num_candidates: Annotated[
        int | None, typer.Option("--num-candidates", help="TensorRT: likeliest tokens a step tells of. \\[default: 64]")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="TensorRT-RTX: build for this kind of GPU, such as 8.9; may be given several times. No GPU is needed.",
        ),
    ] = None,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming", help="TensorRT: weights may stay in host memory, for a model over the card's size."
        ),
    ] = False,
    int4_rounding: Annotated[
        str | None,
        typer.Option("--int4-rounding", help="gptq, or nearest: fast, no calibration, less exact. \\[default: gptq]"),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            help="TensorRT: fused, decomposed or plain. \\[default: fused, decomposed where there is no kernel]",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help="int8, fp8 and int4: a text file like what will be asked. \\[default: built in]"
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare with transformers first (extra: check); without a checkpoint: check this machine's GPU again "
            "with the TensorRT artifact that is there.",
        ),
    ] = False,
    repository: shared.Repository = None,
    json: shared.Json = False,
) -> None:
    """Turn a checkpoint into the artifact that the server loads.

    \b
    Examples:
      autoglm export smollm2
      autoglm export ./glm-4-9b-chat --precision int8 --max-length 4096
      autoglm export ./glm-4-9b-chat --name glm
      autoglm export model.gguf -o build/model --runtime native --check
      autoglm export ./AutoGLM-Phone-9B --runtime tensorrt --precision fp8 --calibration prompts.txt
      autoglm export smollm2 -o build/rtx --runtime tensorrt-rtx --compute-capability 8.9
      autoglm export --check
    """
    if name is not None and output is not None:
        raise CommandError("--name and --output both say where the artifact goes; give one of them")
    target = output if output is not None else _target(checkpoint, name, repository)
    chosen = {
        "runtime": runtime,
        "precision": precision,
        "max_slots": max_slots,
        "max_length": max_length,
        "prefill_chunk": prefill_chunk,
        "kv_dtype": kv_dtype,
        "num_candidates": num_candidates,
        "compute_capabilities": compute_capability or None,
        "weight_streaming": weight_streaming or None,
        "int4_rounding": int4_rounding,
        "attention": attention,
        "calibration": calibration,
    }
    manifest = _recheck(target, check, chosen) if checkpoint is None else run_export(checkpoint, target, check, chosen)
    for line in device_lines(manifest.runtime_details):
        notes().print(line, markup=False, soft_wrap=True)
    if json:
        print_json(manifest_json(manifest, target))
    elif checkpoint is not None:
        notes().print(f"exported {manifest.model_name} ({manifest.runtime}, {manifest.precision}) to {target}")


def _target(checkpoint: str | None, name: str | None, repository: Path | None) -> Path:
    """Of an export, or of the artifact that is there already."""
    if checkpoint is not None or name is not None:
        return export_folder(checkpoint or "", name, repository)
    return artifact_folder(None, repository_folder(repository))


def _recheck(target: Path, check: bool, chosen: dict[str, Any]) -> Any:
    """The manifest. Nothing is built, so nothing may be chosen."""
    if not check:
        raise typer.BadParameter("a checkpoint is missing; only --check goes without one")
    if given := [name for name, value in chosen.items() if value is not None]:
        raise CommandError(f"--{given[0].replace('_', '-')} needs a checkpoint: without one, --check builds nothing")
    return needs("autoglm_export.parity.device_trial", "export").recheck(target)


def check_exporter() -> Any:
    """The exporter, or the sentence that says what to install: before anything long begins."""
    return needs("autoglm_export.export", "export")


def run_export(checkpoint: str, target: Path, check: bool, chosen: dict[str, Any]) -> Any:
    """The manifest. What is None in `chosen` is left to the exporter; what it found then is told."""
    exporter = check_exporter()
    if check:
        for package in ("torch", "transformers"):
            needs(package, "check")
    options = {name: value for name, value in chosen.items() if value is not None}
    with export_progress() as progress:
        try:
            manifest = exporter.export(checkpoint, target, check=check, progress=progress, **options)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"this export needs the package {error.name}: pip install 'autoglm-triton[export]'"
            ) from None
    if found := manifest.runtime_details.get("auto"):
        notes().print(f"auto: {choice_line(found)}", markup=False, soft_wrap=True)
    return manifest


def manifest_json(manifest: Any, folder: Path) -> dict[str, Any]:
    return {
        "artifact": str(folder),
        "model_name": manifest.model_name,
        "family": manifest.family,
        "runtime": manifest.runtime,
        "runtime_version": manifest.runtime_version,
        "precision": manifest.precision,
        "num_slots": manifest.num_slots,
        "max_length": manifest.max_length,
        "prefill_chunk": manifest.prefill_chunk,
        "vocab_size": manifest.vocab_size,
        "cache_dtype": manifest.cache.dtype,
        "runtime_details": manifest.runtime_details,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "digest": manifest.digest,
        "parity": manifest.parity,
    }


@contextmanager
def export_progress() -> Iterator[ExportProgress]:
    """A bar for each stage that the exporter names."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=notes()) as bars:
        stages: dict[str, Any] = {}

        def progress(stage: str, fraction: float) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=1.0)
            bars.update(stages[stage], completed=fraction)

        yield progress
