"""Which of an artifact's compiled libraries this CPU runs best, and how it is called."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError
from autoglm_engine.runners.cpu import cpu_features

TARGET_VARIABLE = "AUTOGLM_NATIVE_TARGET"  # names the library to load, in place of the best that this CPU runs


def choose_library(
    libraries: Mapping[str, Mapping[str, Any]], present: Collection[str] | None = None, wanted: str | None = None
) -> str:
    """The name of the first of `libraries` that a CPU with the features `present` runs; they are in order, the best
    first.

    None: this CPU's features, and what TARGET_VARIABLE names. Raises ArtifactError where none runs, or not the wanted
    one.
    """
    present = cpu_features() if present is None else present
    missing = {name: sorted(set(entry["cpu_features"]) - set(present)) for name, entry in libraries.items()}
    runnable = [name for name, lacks in missing.items() if not lacks]
    wanted = os.environ.get(TARGET_VARIABLE) if wanted is None else wanted
    if not wanted and runnable:
        return runnable[0]
    if not wanted:
        needed = "; ".join(f"{name} needs {', '.join(lacks)}" for name, lacks in missing.items())
        raise ArtifactError(
            f"this CPU runs none of the artifact's libraries ({needed}); export it again on this machine"
        )
    if wanted not in libraries:
        raise ArtifactError(f"{TARGET_VARIABLE} is {wanted!r}; the artifact has {', '.join(libraries)}")
    if wanted not in runnable:
        lacks = ", ".join(missing[wanted])
        raise ArtifactError(
            f"{TARGET_VARIABLE} is {wanted!r}, but this CPU lacks {lacks}; it runs {', '.join(runnable)}"
        )
    return wanted


def open_library(path: Path) -> ctypes.CDLL:
    """Raises ArtifactError for a file that cannot be loaded."""
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.autoglm_create.argtypes = [pointer, pointer, pointer, pointer]
    library.autoglm_create.restype = pointer
    library.autoglm_destroy.argtypes = [pointer]
    library.autoglm_destroy.restype = None
    library.autoglm_forward.argtypes = [pointer, pointer, number, pointer]
    library.autoglm_forward.restype = None
    if hasattr(library, "autoglm_forward_images"):  # not in one that was built before there were images
        library.autoglm_forward_images.argtypes = [pointer, pointer, number, pointer, pointer, pointer]
        library.autoglm_forward_images.restype = None
    library.autoglm_logits.argtypes = [pointer]
    library.autoglm_logits.restype = pointer
    library.autoglm_copy_prefix.argtypes = [pointer, number, number, number]
    library.autoglm_copy_prefix.restype = None
    return library
