"""`autoglm export`"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autoglm_cli.device_lines import device_lines
from autoglm_cli.errors import CommandError, needs, usage_error
from autoglm_cli.options import shared
from autoglm_cli.options.export import BuildOptions, TargetOptions, TensorRTOptions, chosen_for_export
from autoglm_cli.options.groups import grouped, said
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, export_folder, repository_folder

from .runtime_choice import choice_line

ExportProgress = Callable[[str, float], None]


@grouped
def export(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Hugging Face folder, .gguf file, or smollm2 (a bundled model).")
    ] = None,
    *,
    target: TargetOptions,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare with transformers first (extra: check). Without a checkpoint: check the TensorRT artifact "
            "that is there against this machine's GPU again.",
        ),
    ] = False,
    json: shared.Json = False,
    build: BuildOptions,
    tensorrt: TensorRTOptions,
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
    folder = _folder(checkpoint, target)
    if checkpoint is None:
        manifest = _recheck(folder, check, said(build, tensorrt))
    else:
        manifest = run_export(checkpoint, folder, check, chosen_for_export(build, tensorrt))
    details = manifest.runtime_details
    for line in (*device_lines(details), *filter(None, [details.get("checkpoint_note")])):
        notes().print(line, markup=False, soft_wrap=True)
    if (vision := manifest.vision) is not None:
        notes().print(
            f"takes images of up to {vision.max_tokens:,} tokens each (--max-pixels); a request has up to "
            f"{manifest.max_length:,} in all (--max-length)",
            soft_wrap=True,
        )
    if json:
        print_json(manifest_json(manifest, folder))
    elif checkpoint is not None:
        notes().print(f"exported {manifest.model_name} ({manifest.runtime}, {manifest.precision}) to {folder}")


def _folder(checkpoint: str | None, target: TargetOptions) -> Path:
    """Of an export, or of the artifact that is there already."""
    if target.name is not None and target.output is not None:
        raise CommandError("--name and --output both say where the artifact goes; give one of them")
    if target.output is not None:
        return target.output
    if checkpoint is not None or target.name is not None:
        return export_folder(checkpoint or "", target.name, target.repository)
    return artifact_folder(None, repository_folder(target.repository))


def _recheck(folder: Path, check: bool, chosen: dict[str, Any]) -> Any:
    """The manifest. Nothing is built, so nothing may be chosen."""
    if not check:
        raise usage_error("Missing argument 'checkpoint', such as smollm2; only --check needs none")
    if chosen:
        raise CommandError(
            f"--{next(iter(chosen)).replace('_', '-')} needs a checkpoint: without one, --check builds nothing"
        )
    return needs("autoglm_export.parity.device_trial", "export").recheck(folder)


def check_exporter() -> Any:
    """The exporter, or the sentence that says what to install: before anything long begins."""
    return needs("autoglm_export.export", "export")


def run_export(checkpoint: str, target: Path, check: bool, chosen: dict[str, Any]) -> Any:
    """The manifest. What is not chosen is left to the exporter; what it found then is told."""
    exporter = check_exporter()
    if check:
        for package in ("torch", "transformers"):
            needs(package, "check")
    with export_progress() as progress:
        try:
            manifest = exporter.export(checkpoint, target, check=check, progress=progress, **chosen)
        except ModuleNotFoundError as error:
            raise CommandError(
                f"this export needs the package {error.name}: pip install 'autoglm-triton[export]'"
            ) from None
    if found := manifest.runtime_details.get("auto"):
        notes().print(f"auto: {choice_line(found)}", markup=False, soft_wrap=True)
    slots = needs("autoglm_export.slot_length", "export")
    lines = ["" if "max_length" in chosen else slots.length_line(manifest), slots.memory_line(manifest)]
    for line in filter(None, lines):
        notes().print(line, markup=False, soft_wrap=True)
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
        "eos_token_ids": list(manifest.eos_token_ids),
        "special_tokens": manifest.special_tokens,
        "generation_defaults": manifest.generation_defaults,
        "stop_strings": list(manifest.stop_strings),
        "banned_tokens": [list(word) for word in manifest.banned_tokens],
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
