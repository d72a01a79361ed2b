"""What a checkpoint sees with: its tower's spec and weights, how images are prepared, and which tokens they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_export.errors import CheckpointError, UnsupportedModel
from autoglm_export.model.vision_spec import VisionSpec

from .image_processor import ImageProcessor, image_processor
from .vision_config import vision_spec
from .vision_weights import tower_weights
from .weights import Array, TensorStore

# Of a prompt that has an image: the tokens around it, and the one that is repeated for each row of its features.
BEGIN_IMAGE, IMAGE, END_IMAGE = "<|begin_of_image|>", "<|image|>", "<|end_of_image|>"
_CONFIG_KEYS = {BEGIN_IMAGE: "image_start_token_id", IMAGE: "image_token_id", END_IMAGE: "image_end_token_id"}


@dataclass(frozen=True, slots=True)
class ImageTokens:
    begin: int
    image: int
    end: int


@dataclass(frozen=True, slots=True)
class VisionCheckpoint:
    spec: VisionSpec
    weights: Mapping[str, Array]  # as in `vision_spec`
    processor: ImageProcessor
    tokens: ImageTokens


def read_vision(
    config: Mapping[str, Any], processor: Mapping[str, Any], store: TensorStore, tokenizer: bytes, decoder_width: int
) -> VisionCheckpoint:
    """Of a glm4v checkpoint. `processor`: what its image processor's file says. Raises ExportError."""
    raw = config.get("vision_config")
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"the config's vision_config is {raw!r:.40}; it must be an object")
    spec = vision_spec(raw, decoder_width)
    return VisionCheckpoint(
        spec=spec,
        weights=tower_weights(spec, store),
        processor=image_processor(processor, spec),
        tokens=image_tokens(config, tokenizer),
    )


def image_tokens(config: Mapping[str, Any], tokenizer: bytes) -> ImageTokens:
    """As the tokenizer numbers them, which the config must agree with where it says."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(tokenizer.decode())
    ids: dict[str, int] = {}
    for token, key in _CONFIG_KEYS.items():
        if (found := known.token_to_id(token)) is None:
            raise CheckpointError(f"tokenizer.json lacks {token}, which a model that takes images needs")
        if config.get(key, found) != found:
            raise UnsupportedModel(f"the config's {key} is {config[key]!r:.40}; tokenizer.json gives {token} {found}")
        ids[token] = found
    return ImageTokens(ids[BEGIN_IMAGE], ids[IMAGE], ids[END_IMAGE])
