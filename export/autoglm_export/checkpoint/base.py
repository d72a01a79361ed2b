"""A checkpoint, whatever its form: spec, lazy weights, tokenizer and generation defaults."""

from __future__ import annotations

from dataclasses import dataclass

from autoglm_export.errors import CheckpointError
from autoglm_export.model.spec import ModelSpec

from .generation.chat_templates import ChatTemplates
from .generation.generation_config import Generation
from .vision import VisionCheckpoint
from .weights import CheckpointWeights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`name` names the artifact, `source` says where it came from; neither is a path."""

    name: str
    source: str
    spec: ModelSpec
    weights: CheckpointWeights
    tokenizer: bytes  # a whole tokenizer.json
    templates: ChatTemplates
    special_tokens: dict[str, str]  # name -> text, as a chat template is given them
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    generation: Generation
    vision: VisionCheckpoint | None = None  # of one that takes images


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
