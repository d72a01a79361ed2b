"""Which release this package is of: a model's file and the package that it finds must be of one."""

from __future__ import annotations

from pathlib import Path

from .errors import EngineError

RELEASE = "0.1.0"


def check_release(model: str, wanted: str) -> None:
    """Raises EngineError where the file of `model` goes with another release."""
    if wanted != RELEASE:
        folder = Path(__file__).parent
        raise EngineError(
            f"{model} is of release {wanted}, and the package at {folder} is of {RELEASE}; use one of both"
        )
