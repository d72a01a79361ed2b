"""Options of `autoglm export`: what the exporter is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from . import shared
from .groups import said


@dataclass(frozen=True, slots=True)
class TargetOptions:
    PANEL: ClassVar = None

    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Artifact folder. \\[default: a checkout's own, else as with --name]"),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(help="Name to keep it under, as `autoglm models` shows. \\[default: the checkpoint's]"),
    ] = None
    repository: shared.Repository = None


@dataclass(frozen=True, slots=True)
class BuildOptions:
    PANEL: ClassVar = "The artifact"

    runtime: Annotated[
        str | None,
        typer.Option(
            help="onnx, native, tensorrt, tensorrt-rtx, or auto: the faster of native and onnx on this machine. "
            "\\[default: auto]",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            help="native: int8; onnx: int8 or fp32 on a CPU, fp16 on a GPU; TensorRT: bf16, fp16, fp8 or int4. "
            "\\[default: int8; TensorRT: bf16]",
        ),
    ] = None
    max_slots: Annotated[int | None, typer.Option(help="Most requests in flight.")] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of prompt and answer together. \\[default: all of the model's, or what a third of the "
            "free memory holds for all slots; 1024 for a GPU]",
        ),
    ] = None
    prefill_chunk: Annotated[int | None, typer.Option(help="Most prompt tokens of one step.")] = None
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Most pixels of an image, of two frames as the models count. \\[default: the checkpoint's]"),
    ] = None
    int4_rounding: Annotated[
        str | None, typer.Option(help="gptq, or nearest: faster, no calibration, less exact. \\[default: gptq]")
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(help="For int8, fp8 and int4: a text file like the prompts to come. \\[default: built in]"),
    ] = None


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    PANEL: ClassVar = "TensorRT"

    kv_dtype: Annotated[str | None, typer.Option(help="Type of the key/value cache: bf16 or fp16.")] = None
    num_candidates: Annotated[
        int | None, typer.Option(help="Likeliest tokens that a step returns. \\[default: 64]")
    ] = None
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="TensorRT-RTX: build for this kind of GPU, such as 8.9; no GPU is needed. Repeatable.",
        ),
    ] = None
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming", help="Weights may stay in host memory, for a model larger than the GPU's memory."
        ),
    ] = False
    attention: Annotated[
        str | None,
        typer.Option(
            help="fused, decomposed or plain. \\[default: fused, or decomposed where there is no fused kernel]"
        ),
    ] = None


def chosen_for_export(*groups: Any) -> dict[str, Any]:
    """Arguments of the exporter."""
    renamed = {"compute_capability": "compute_capabilities"}
    return {renamed.get(name, name): value for name, value in said(*groups).items()}
