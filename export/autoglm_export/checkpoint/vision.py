"""What a checkpoint sees with: its tower's spec and weights, how images are prepared, and which tokens they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_export.errors import CheckpointError, UnsupportedModel
from autoglm_export.model.vision_spec import VisionSpec

from .image_processor import ImageProcessor, image_processor
from .vision_families import VISION_FAMILIES
from .vision_weights import tower_weights
from .weights import Array, TensorStore


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Of a prompt that has an image: those around it, and the one that is repeated for each row of its features."""

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
    """Of a checkpoint of `VISION_FAMILIES`. `processor`: what its image processor's file says. Raises ExportError."""
    family = VISION_FAMILIES[config["model_type"]]
    raw = config.get("vision_config")
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"the config's vision_config is {raw!r:.40}; it must be an object")
    spec = family.spec(raw, decoder_width)
    return VisionCheckpoint(
        spec=spec,
        weights=tower_weights(spec, store, family.names),
        processor=image_processor(processor, spec, family.processor),
        tokens=image_tokens(config, tokenizer, family.tokens),
    )


def image_tokens(config: Mapping[str, Any], tokenizer: bytes, keys: Mapping[str, str]) -> ImageTokens:
    """As the tokenizer numbers them, which the config must agree with where it says. `keys`: `VisionFamily.tokens`."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(tokenizer.decode())
    ids: list[int] = []
    for token, key in keys.items():
        if (found := known.token_to_id(token)) is None:
            raise CheckpointError(f"tokenizer.json lacks {token}, which a model that takes images needs")
        if config.get(key, found) != found:
            raise UnsupportedModel(f"the config's {key} is {config[key]!r:.40}; tokenizer.json gives {token} {found}")
        ids.append(found)
    return ImageTokens(*ids)
