"""Artifacts of the small model that sees drawn screens, which several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autoglm_export.screens.checkpoint import CHECKPOINT

from tests.support.export.artifacts import kept_export


def screens_artifact(precision: Literal["fp32", "int8"]) -> Path:
    """Eight slots of 512 tokens; each precision in the runtime that serves it."""
    runtime = {"fp32": "onnx", "int8": "native"}[precision]
    return kept_export(
        f"screens-{precision}", CHECKPOINT, runtime=runtime, precision=precision, max_slots=8, max_length=512
    )
