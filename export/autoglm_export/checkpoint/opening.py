"""Opens a checkpoint of any form, and checks what must hold of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoglm_export.errors import CheckpointError, UnsupportedModel

from .base import Checkpoint
from .gguf.opening import open_gguf
from .gguf.paths import gguf_paths
from .huggingface import holds_safetensors, open_folder

MAX_TEMPLATE_BYTES = 1 << 20  # as the engine reads


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """The checkpoint in a Hugging Face folder, a GGUF file (of shards any one), or a folder with one GGUF model. Raises
    ExportError, naming what is wrong."""
    try:
        found = None if path.is_dir() and holds_safetensors(path) else gguf_paths(path)
        if found is not None:
            return _checked(open_gguf(found, name or found.name))
        if path.is_dir():
            return _checked(open_folder(path, name or path.resolve().name))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} holds something that no checkpoint does: {error}") from error
    raise CheckpointError(f"there is no checkpoint at {path}: expected a folder with config.json, or a .gguf file")


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Its numbers can be computed with, and its template read. Asked when the weights are known to have the spec's
    sizes."""
    with np.errstate(all="ignore"):
        frequencies = checkpoint.spec.rope.inverse_frequencies()
    for template in (checkpoint.templates.default, checkpoint.templates.for_tools):
        if template is not None and not (isinstance(template, str) and len(template.encode()) <= MAX_TEMPLATE_BYTES):
            raise CheckpointError(f"the chat template must be a text of at most {MAX_TEMPLATE_BYTES} bytes")
    if not np.isfinite(frequencies).all():
        raise UnsupportedModel(
            f"the rotary embedding has frequencies that are no finite numbers: {checkpoint.spec.rope}"
        )
    return checkpoint
