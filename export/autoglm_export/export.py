"""`autoglm export`: checkpoint -> artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.core import TokenIds
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.options.table import LENGTHS
from autoglm_engine.tokenizer.artifact_texts import TEMPLATE_NAME, TOKENIZER_NAME, TOOL_TEMPLATE_NAME

from autoglm_export.auto_runtime.choice import Candidates, candidates, choose, fitting
from autoglm_export.auto_runtime.timing import measure
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.tokenizer_trial import try_tokenizer
from autoglm_export.model.spec import ModelSpec
from autoglm_export.parity.device_trial import tried
from autoglm_export.quantize.calibration_text import texts_of
from autoglm_export.tensorrt.attention import FORMS
from autoglm_export.tensorrt.module import MODULES
from autoglm_export.tensorrt.options import checked_kv_dtype

from .artifact import Options, describe, lower, save_whole
from .artifact_writer import check_replaceable, staged
from .errors import InvalidOption
from .runtimes import AUTO, Progress, check_installed, no_progress, runtime_named
from .slot_length import default_length
from .vision_artifact import build_vision, feature_rotation, lower_vision, with_max_pixels, write_image_libraries

MAX_SLOTS = 1024


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
    max_pixels: int | None = None,
    check: bool = False,
    progress: Progress = no_progress,
    **runtime_options: Any,
) -> Manifest:
    """Write the artifact of `checkpoint` (a folder, a .gguf file or the name of a bundled model) to `output`,
    atomically.

    `runtime` auto: native or onnx. Where both can be built here in the precision, they are timed for some seconds; the
    manifest says what was found (`runtime_details["auto"]`).
    `precision` None: the runtime's default. `max_length` None: `slot_length.default_length`.
    `prefill_chunk` None: the runtime's default, or `max_length` where that is less. `calibration`: a text file in place
    of the built-in text, for precisions that are calibrated. `max_pixels`: of an image, counted as the checkpoint's own
    limit is, which it may not exceed. `runtime_options`: what only some runtimes take
    (`Runtime.options`). With `check`, the artifact must pass the parity gate (it needs torch and transformers) before
    it is put in place. Raises ExportError; then `output` is as it was.
    """
    offered = _checked_candidates(runtime, precision, output, runtime_options, calibration)
    progress("read checkpoint", 0.0)
    path, name = resolve(checkpoint)
    source = with_max_pixels(open_checkpoint(path, name=name), max_pixels)
    try_tokenizer(source.tokenizer)
    offered = fitting(offered, source.spec, precision)
    plans = [_plan(source.spec, each, precision, max_slots, max_length, prefill_chunk) for each in offered.names]
    texts = _encoded(source, texts_of(calibration)) if any(map(_reads_texts, plans)) else []
    progress("read checkpoint", 1.0)
    with staged(output) as folder:
        choice = choose(plans, offered.left_out, source.spec, folder, progress, measure)
        _write_tokenizer(folder, source)
        vision, noted = _lower_vision(folder, source, choice.plan, runtime_options, progress)
        noted |= {"auto": choice.as_json()} if runtime == AUTO else {}
        make = _Making(source, folder, choice.plan, texts, runtime_options, noted, vision, progress)
        manifest = make()
        if "reference" in manifest.runtime_details:
            forms = () if runtime_options.get("attention") else FORMS
            manifest = tried(manifest, lambda form: make(attention=form), folder, forms, progress)
        if check:
            manifest = check_artifact(folder, path, progress=progress)
    return manifest


def check_artifact(artifact: Path, checkpoint: str | Path, *, progress: Progress = no_progress) -> Manifest:
    """Run the parity gate on an artifact and record its report in the manifest. Raises ParityError when it fails."""
    from .parity import gate as parity

    path, _ = resolve(checkpoint)
    report = parity.compare(artifact, path, progress=progress)
    manifest = dataclasses.replace(Manifest.load(artifact), parity=report.as_json())
    save_whole(manifest, artifact)
    report.enforce()
    return manifest


@dataclasses.dataclass(frozen=True, slots=True)
class _Making:
    """Lowers the checkpoint into the folder, as often as it is called. `noted` goes into the runtime's details."""

    source: Checkpoint
    folder: Path
    plan: Options
    texts: Sequence[TokenIds]
    runtime_options: Mapping[str, Any]
    noted: Mapping[str, Any]
    vision: VisionSettings | None
    progress: Progress

    def __call__(self, **changes: Any) -> Manifest:
        source, taken = self.source, {**self.runtime_options, **changes}
        spec = source.spec if self.vision else source.spec.without_images()
        texts = self.texts if _reads_texts(self.plan) else []
        details = lower(spec, source.weights, self.folder, self.plan, texts=texts, progress=self.progress, **taken)
        return _described(self.folder, source, spec, self.plan, {**details, **self.noted}, self.vision)


def _checked_candidates(
    runtime: str, precision: str | None, output: Path, given: Mapping[str, Any], calibration: Path | None
) -> Candidates:
    """The runtimes that the artifact may be of. Raises ExportError before anything that takes time."""
    offered = candidates(runtime, precision)
    for each in offered.names:
        _check_runtime_options(each, precision, given, calibration)
    check_replaceable(output)
    for each in offered.names:
        check_installed(each, precision)
    return offered


def _check_runtime_options(
    runtime: str, precision: str | None, given: Mapping[str, Any], calibration: Path | None
) -> None:
    entry = runtime_named(runtime, precision)
    precision = precision or entry.default_precision
    if unknown := sorted(given.keys() - set(entry.options)):
        raise InvalidOption(f"the runtime {runtime} has no option {unknown[0]}")
    if calibration is not None and precision not in entry.calibrated:
        raise InvalidOption(f"a calibration text is of no use to {precision} on the runtime {runtime}")


def _plan(
    spec: ModelSpec,
    runtime: str,
    precision: str | None,
    max_slots: int,
    max_length: int | None,
    prefill_chunk: int | None,
) -> Options:
    """What was asked for, and the defaults of the runtime and the model for the rest."""
    entry = runtime_named(runtime, precision)
    precision = precision or entry.default_precision
    _check_range("max_slots", max_slots, 1, MAX_SLOTS)
    length = default_length(spec, runtime, precision, max_slots) if max_length is None else max_length
    _check_range("max_length", length, 2, spec.max_position)
    chunk = min(entry.prefill_chunk, length) if prefill_chunk is None else prefill_chunk
    _check_range("prefill_chunk", chunk, 1, length)
    return Options(runtime, precision, max_slots, length, chunk)


def _reads_texts(plan: Options) -> bool:
    entry = runtime_named(plan.runtime, plan.precision)
    return plan.precision in entry.calibrated or entry.has_reference


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
    (folder / TOKENIZER_NAME).write_bytes(source.tokenizer)
    templates = {TEMPLATE_NAME: source.templates.default, TOOL_TEMPLATE_NAME: source.templates.for_tools}
    for name, template in templates.items():
        if template is not None:
            (folder / name).write_text(template, encoding="utf-8")


def _lower_vision(
    folder: Path, source: Checkpoint, options: Options, given: Mapping[str, Any], progress: Progress
) -> tuple[VisionSettings | None, dict[str, Any]]:
    """None where the checkpoint takes no images; and what the runtime's details are to note. On TensorRT the tower is
    an engine, too, with the caches' type for its products; else ONNX Runtime computes it."""
    if source.vision is None:
        return None, {}
    noted = write_image_libraries(folder)
    if options.runtime not in MODULES:
        rotation = feature_rotation(source.spec.as_json(), options.runtime, options.precision)
        return lower_vision(source.vision, source.spec.rope, folder, rotation=rotation, progress=progress), noted
    vision, note = build_vision(
        source.vision,
        source.spec.rope,
        folder,
        runtime=options.runtime,
        precision=checked_kv_dtype(options.precision, given.get("kv_dtype")),
        compute_capabilities=given.get("compute_capabilities") or (),
        progress=progress,
    )
    return vision, noted | ({"vision_note": note} if note else {})


def _within(defaults: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Lengths of answers that a slot has room for."""
    return {name: min(value, max_length) if name in LENGTHS else value for name, value in defaults.items()}


def _described(
    folder: Path,
    source: Checkpoint,
    spec: ModelSpec,
    options: Options,
    details: dict[str, Any],
    vision: VisionSettings | None,
) -> Manifest:
    noted = {"checkpoint_note": source.generation.note} if source.generation.note else {}
    return describe(
        folder,
        spec,
        options,
        {**details, **noted},
        model_name=source.name,
        source=source.source,
        eos_token_ids=source.eos_token_ids,
        bos_token_id=source.bos_token_id,
        generation_defaults=_within(source.generation.defaults, options.max_length),
        stop_strings=source.generation.stop,
        banned_tokens=source.generation.banned,
        special_tokens=source.special_tokens,
        vision=vision,
    )
