"""`autoglm export`: checkpoint -> artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from autoglm_engine.core import TokenIds
from autoglm_engine.manifest import MANIFEST_NAME, CacheShape, FileRecord, Manifest

from .bundled import resolve
from .calibration_text import texts_of
from .checkpoint import Checkpoint, open_checkpoint
from .errors import InvalidOption
from .lowering import AUTO, Progress, Runtime, choose_runtime, no_progress, runtime_named
from .spec import ModelSpec
from .staging import check_replaceable, staged

DEFAULT_MAX_LENGTH = 1024
MAX_SLOTS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the user chooses, checked against the model."""

    runtime: str
    precision: str
    num_slots: int
    max_length: int
    prefill_chunk: int


def export(
    checkpoint: str | Path,
    output: Path,
    *,
    runtime: str = AUTO,
    precision: str | None = None,
    max_slots: int = 16,
    max_length: int | None = None,
    prefill_chunk: int | None = None,
    calibration: Path | None = None,
    check: bool = False,
    progress: Progress = no_progress,
    **runtime_options: Any,
) -> Manifest:
    """Write the artifact of `checkpoint` (a folder, a .gguf file or the name of a bundled model) to `output`, atomically.

    `runtime` auto: native where it can be built here and has the precision, else onnx; the manifest says which.
    `precision` None: the runtime's default. `max_length` None: 1024, or the model's limit where that is less.
    `prefill_chunk` None: the runtime's default, or `max_length` where that is less. `calibration`: a text file in place of
    the built-in text, for precisions that are calibrated. `runtime_options`: what only some runtimes take
    (`Runtime.options`). With `check`, the artifact must pass the parity gate (it needs torch and transformers) before it
    is put in place. Raises ExportError; then `output` is as it was.
    """
    runtime = choose_runtime(runtime, precision)
    entry = runtime_named(runtime, precision)
    precision = precision or entry.default_precision
    _check_runtime_options(runtime, entry, precision, runtime_options, calibration)
    check_replaceable(output)
    version, lower = entry.version(), entry.load()
    progress("read checkpoint", 0.0)
    path, name = resolve(checkpoint)
    source = open_checkpoint(path, name=name)
    options = _checked_options(
        source.spec, runtime, precision, max_slots, max_length, prefill_chunk, entry.prefill_chunk
    )
    texts = _encoded(source, texts_of(calibration)) if precision in entry.calibrated else []
    progress("read checkpoint", 1.0)
    with staged(output) as folder:
        details = lower(
            source.spec,
            source.weights,
            folder,
            precision=options.precision,
            num_slots=options.num_slots,
            max_length=options.max_length,
            prefill_chunk=options.prefill_chunk,
            texts=texts,
            progress=progress,
            **runtime_options,
        )
        _write_tokenizer(folder, source)
        manifest = _manifest(source, options, version, details, _file_records(folder))
        manifest.save(folder)
        if check:
            manifest = check_artifact(folder, path, progress=progress)
    return manifest


def check_artifact(artifact: Path, checkpoint: str | Path, *, progress: Progress = no_progress) -> Manifest:
    """Run the parity gate on an artifact and record its report in the manifest. Raises ParityError when it fails."""
    from . import parity

    path, _ = resolve(checkpoint)
    report = parity.compare(artifact, path, progress=progress)
    manifest = dataclasses.replace(Manifest.load(artifact), parity=report.as_json())
    _save_whole(manifest, artifact)
    report.enforce()
    return manifest


def _save_whole(manifest: Manifest, artifact: Path) -> None:
    """Replace the manifest of an artifact in one step: a server may be reading it."""
    with TemporaryDirectory(prefix=".manifest-", dir=artifact) as folder:
        manifest.save(Path(folder))
        (Path(folder) / MANIFEST_NAME).replace(artifact / MANIFEST_NAME)


def _check_runtime_options(
    runtime: str, entry: Runtime, precision: str, given: Mapping[str, Any], calibration: Path | None
) -> None:
    if unknown := sorted(given.keys() - set(entry.options)):
        raise InvalidOption(f"the runtime {runtime} has no option {unknown[0]}")
    if calibration is not None and precision not in entry.calibrated:
        raise InvalidOption(f"a calibration text is of no use to {precision} on the runtime {runtime}")


def _checked_options(
    spec: ModelSpec,
    runtime: str,
    precision: str,
    max_slots: int,
    max_length: int | None,
    prefill_chunk: int | None,
    usual_chunk: int,
) -> Options:
    length = min(DEFAULT_MAX_LENGTH, spec.max_position) if max_length is None else max_length
    _check_range("max_length", length, 2, spec.max_position)
    chunk = min(usual_chunk, length) if prefill_chunk is None else prefill_chunk
    _check_range("prefill_chunk", chunk, 1, length)
    _check_range("max_slots", max_slots, 1, MAX_SLOTS)
    return Options(runtime, precision, max_slots, length, chunk)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidOption(f"{name} is {value}; allowed is {low} ... {high} for this model")


def _encoded(source: Checkpoint, texts: Sequence[str]) -> list[TokenIds]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(source.tokenizer.decode())
    limit = source.spec.max_position
    encoded = [np.array(tokenizer.encode(text).ids[:limit], np.int32) for text in texts]
    return [ids for ids in encoded if len(ids)]


def _write_tokenizer(folder: Path, source: Checkpoint) -> None:
    (folder / "tokenizer.json").write_bytes(source.tokenizer)
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")


def _file_records(folder: Path) -> dict[str, FileRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): FileRecord.of(path) for path in files}


def _manifest(
    source: Checkpoint, options: Options, version: str, details: dict[str, Any], files: dict[str, FileRecord]
) -> Manifest:
    spec = source.spec
    return Manifest(
        model_name=source.name,
        family=spec.family,
        runtime=options.runtime,
        runtime_version=version,
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
        eos_token_ids=source.eos_token_ids,
        bos_token_id=source.bos_token_id,
        generation_defaults=source.generation_defaults,
        spec=dataclasses.asdict(spec),
        runtime_details=details,
        source=source.source,
        exporter_version=metadata.version("autoglm-triton"),
        files=files,
    )
