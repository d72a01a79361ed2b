"""The folder of an artifact, from a spec, its weights and the limits that were chosen: the runtime's files, then the
manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoglm_engine.core import TokenIds
from autoglm_engine.manifest import MANIFEST_NAME, CacheShape, FileRecord, Manifest, VisionSettings
from autoglm_engine.options.bad_words import Words

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec

from . import freed_memory
from .runtimes import Progress, no_progress, runtime_named


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chooses, checked against the model."""

    runtime: str
    precision: str
    num_slots: int
    max_length: int
    prefill_chunk: int


def lower(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    options: Options,
    *,
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
    **runtime_options: Any,
) -> dict[str, Any]:
    """Write the files of the runtime; returns the manifest's `runtime_details`. See `runtimes.Lowering`."""
    runtime = runtime_named(options.runtime, options.precision)
    write = runtime.load()
    with freed_memory.kept():
        return write(
            spec,
            weights,
            folder,
            precision=options.precision,
            num_slots=options.num_slots,
            max_length=options.max_length,
            prefill_chunk=options.prefill_chunk,
            texts=texts,
            progress=progress,
            **runtime_options,
        )


def describe(
    folder: Path,
    spec: ModelSpec,
    options: Options,
    details: dict[str, Any],
    *,
    model_name: str,
    source: str = "",
    eos_token_ids: tuple[int, ...] = (),
    bos_token_id: int | None = None,
    generation_defaults: Mapping[str, Any] | None = None,
    stop_strings: tuple[str, ...] = (),
    banned_tokens: Words = (),
    special_tokens: Mapping[str, str] | None = None,
    vision: VisionSettings | None = None,
) -> Manifest:
    """Write the manifest of what is in `folder`, which is complete without it. `details`: what `lower` returned."""
    manifest = Manifest(
        model_name=model_name,
        family=spec.family,
        runtime=options.runtime,
        runtime_version=runtime_named(options.runtime, options.precision).version(),
        precision=options.precision,
        num_slots=options.num_slots,
        max_length=options.max_length,
        prefill_chunk=options.prefill_chunk,
        vocab_size=spec.vocab_size,
        cache=CacheShape(
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            dtype=details.get("cache_dtype", "float32"),
        ),
        eos_token_ids=eos_token_ids,
        bos_token_id=bos_token_id,
        generation_defaults=dict(generation_defaults or {}),
        spec=spec.as_json(),
        runtime_details=details,
        source=source,
        exporter_version=metadata.version("autoglm-triton"),
        files=_file_records(folder),
        vision=vision,
        stop_strings=stop_strings,
        banned_tokens=banned_tokens,
        special_tokens=None if special_tokens is None else dict(special_tokens),
    )
    manifest.save(folder)
    return manifest


def save_whole(manifest: Manifest, artifact: Path) -> None:
    """Replace the manifest of an artifact in one step: a server may be reading it."""
    with TemporaryDirectory(prefix=".manifest-", dir=artifact) as folder:
        manifest.save(Path(folder))
        (Path(folder) / MANIFEST_NAME).replace(artifact / MANIFEST_NAME)


def _file_records(folder: Path) -> dict[str, FileRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): FileRecord.of(path) for path in files}
