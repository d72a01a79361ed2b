"""A checkpoint, whatever its form: spec, lazy weights, tokenizer and generation defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_export.errors import CheckpointError, UnsupportedModel
from autoglm_export.model.spec import ModelSpec

from .vision import VisionCheckpoint
from .weights import CheckpointWeights

MAX_TEMPLATE_BYTES = 1 << 20  # as the engine reads


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`name` names the artifact, `source` says where it came from; neither is a path."""

    name: str
    source: str
    spec: ModelSpec
    weights: CheckpointWeights
    tokenizer: bytes  # a whole tokenizer.json
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    generation_defaults: dict[str, Any]
    vision: VisionCheckpoint | None = None  # of one that takes images


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """The checkpoint in a Hugging Face folder or a GGUF file. Raises ExportError, naming what is wrong."""
    from .gguf import open_gguf
    from .huggingface import open_folder

    try:
        if path.is_dir():
            return _checked(open_folder(path, name or path.resolve().name))
        if path.suffix == ".gguf" and path.is_file():
            return _checked(open_gguf(path, name or path.stem))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} holds something that no checkpoint does: {error}") from error
    raise CheckpointError(f"there is no checkpoint at {path}: expected a folder with config.json, or a .gguf file")


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Its numbers can be computed with, and its template read. Asked when the weights are known to have the spec's
    sizes."""
    with np.errstate(all="ignore"):
        frequencies = checkpoint.spec.rope.inverse_frequencies()
    template = checkpoint.chat_template
    if template is not None and not (isinstance(template, str) and len(template.encode()) <= MAX_TEMPLATE_BYTES):
        raise CheckpointError(f"the chat template must be a text of at most {MAX_TEMPLATE_BYTES} bytes")
    if not np.isfinite(frequencies).all():
        raise UnsupportedModel(
            f"the rotary embedding has frequencies that are no finite numbers: {checkpoint.spec.rope}"
        )
    return checkpoint


def checked_tokenizer(content: bytes, vocab_size: int) -> bytes:
    """`content` unchanged, once the tokenizers library has read it and every id has a row in the embedding."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise CheckpointError(f"tokenizer.json has the token id {largest}; the model's ids are 0 ... {vocab_size - 1}")
    return content
