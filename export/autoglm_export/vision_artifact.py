"""The part of an artifact that sees: the tower's files, and what the manifest says of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoglm_engine.manifest import IMAGE_LIBRARIES, VisionSettings

from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.vision import VisionCheckpoint
from autoglm_export.compiler import PIXELS_SOURCE
from autoglm_export.model.spec import RopeSpec
from autoglm_export.native.libraries import IMAGES_FOLDER, Libraries
from autoglm_export.onnx.vision import write_vision
from autoglm_export.quantize.rotation import RotatedFeatures, Rotation, stream_rotation

from . import freed_memory
from .errors import ExportError, InvalidOption
from .runtimes import Progress, no_progress, runtime_named

MAX_IMAGES = 10  # of one request; as Open-AutoGLM's README starts other servers


def with_max_pixels(checkpoint: Checkpoint, max_pixels: int | None) -> Checkpoint:
    """One that makes larger images smaller than it did; None leaves it as it is. Raises InvalidOption."""
    if max_pixels is None:
        return checkpoint
    if (vision := checkpoint.vision) is None:
        raise InvalidOption(f"max_pixels is {max_pixels}; {checkpoint.name} takes no images")
    least, most = vision.processor.min_pixels, vision.processor.max_pixels
    if not least <= max_pixels <= most:
        raise InvalidOption(f"max_pixels is {max_pixels}; allowed is {least} ... {most} for this model")
    processor = dataclasses.replace(vision.processor, max_pixels=max_pixels)
    return dataclasses.replace(checkpoint, vision=dataclasses.replace(vision, processor=processor))


def feature_rotation(spec: Mapping[str, Any], runtime: str, precision: str) -> Rotation | None:
    """What turns the residual stream of a decoder that is lowered so, and thus the features that it reads. `spec`: as a
    manifest has it."""
    if precision not in runtime_named(runtime, precision).rotated:
        return None
    return stream_rotation(spec["hidden_size"], sandwich_norm=spec["sandwich_norm"])


def lower_vision(
    vision: VisionCheckpoint,
    rope: RopeSpec,
    folder: Path,
    *,
    rotation: Rotation | None = None,
    precision: str = "fp32",
    progress: Progress = no_progress,
) -> VisionSettings:
    """Write the tower into `folder` for ONNX Runtime; returns the manifest's `vision`. `rope`: the decoder's;
    `rotation`: of its residual stream."""
    weights = vision.weights
    if rotation is not None:
        weights = RotatedFeatures(weights, vision.spec.writers, rotation)
    with freed_memory.kept():
        model = write_vision(vision.spec, weights, folder, precision=precision, progress=progress)
    return _settings(vision, rope, "onnx", model, precision)


def write_image_libraries(folder: Path) -> dict[str, Any]:
    """Compile into `folder` what reads images. What the runtime's details say of it, or why Pillow reads them."""
    try:
        with Libraries.building(PIXELS_SOURCE) as building:
            return {IMAGE_LIBRARIES: building.write(folder, IMAGES_FOLDER)}
    except ExportError as error:
        shutil.rmtree(folder / IMAGES_FOLDER, ignore_errors=True)
        return {"image_note": f"Pillow reads the images, which takes longer: {error}"}


def build_vision(
    vision: VisionCheckpoint,
    rope: RopeSpec,
    folder: Path,
    *,
    runtime: str,
    precision: str,
    compute_capabilities: Sequence[str] = (),
    progress: Progress = no_progress,
) -> tuple[VisionSettings, str]:
    """As `lower_vision`, for one of TensorRT's runtimes in fp16 or bf16. Beside the settings: what is to be noted of
    the build, or nothing."""
    from autoglm_export.tensorrt.vision import VISION_ENGINE, write_vision_engine

    settings = _settings(vision, rope, runtime, VISION_ENGINE, precision)
    with freed_memory.kept():
        built = write_vision_engine(
            vision.spec,
            vision.weights,
            settings,
            folder,
            compute_capabilities=compute_capabilities,
            progress=progress,
        )
    return settings, built.note


def _settings(vision: VisionCheckpoint, rope: RopeSpec, runtime: str, model: str, precision: str) -> VisionSettings:
    time, row, column = rope.sections
    spec, processor, tokens = vision.spec, vision.processor, vision.tokens
    return VisionSettings(
        runtime=runtime,
        model=model,
        precision=precision,
        image_token_id=tokens.image,
        begin_image_token_id=tokens.begin,
        end_image_token_id=tokens.end,
        patch_size=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
        min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels,
        frames=processor.frames,
        grows_small=processor.grows_small,
        image_mean=processor.mean,
        image_std=processor.std,
        hidden_size=spec.feature_size,
        head_size=spec.head_size,
        rope_theta=spec.rope_theta,
        position_table_size=spec.position_table_size,
        interpolation=spec.interpolation,
        mrope_sections=(time, row, column),
        max_images=MAX_IMAGES,
    )
