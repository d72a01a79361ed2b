"""A tower of GLM-4.1V's published widths, of random weights: transformers' model, and as an export reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_export.checkpoint.image_processor import image_processor
from autoglm_export.checkpoint.vision import ImageTokens, VisionCheckpoint
from autoglm_export.checkpoint.vision_families import GLM4V
from autoglm_export.checkpoint.vision_weights import tower_weights
from autoglm_export.model.spec import RopeSpec

from tests.support.export.tiny_glm4v import PREPROCESSOR

WIDTHS = {"hidden_size": 1536, "num_heads": 12, "out_hidden_size": 4096, "intermediate_size": 13696, "image_size": 336}
# Of AutoGLM-Phone-9B: at most 6,144 tokens.
PROCESSOR = {**PREPROCESSOR, "size": {"shortest_edge": 12_544, "longest_edge": 9_633_792}}
ROPE = RopeSpec(10_000.0, 64, interleaved=True, sections=(8, 12, 12))  # its decoder's
SCREEN = (172, 78)  # patches of a screen of 1080 x 2400 pixels: 13,416


def published_tower(depth: int) -> tuple[Any, VisionCheckpoint]:
    import torch
    from transformers import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    torch.manual_seed(0)
    reference = Glm4vVisionModel(Glm4vVisionConfig(depth=depth, **WIDTHS)).eval()
    with torch.no_grad():
        reference.embeddings.position_embedding.weight.normal_(std=0.5)
    spec = GLM4V.spec(reference.config.to_diff_dict(), WIDTHS["out_hidden_size"])
    store = TorchStore({f"model.visual.{name}": value for name, value in reference.state_dict().items()})
    weights = tower_weights(spec, store, GLM4V.names)
    processor = image_processor(PROCESSOR, spec, GLM4V.processor)
    return reference, VisionCheckpoint(spec, weights, processor, ImageTokens(1, 2, 3))


@dataclass
class TorchStore:
    """`TensorStore` of a model in memory."""

    tensors: Mapping[str, Any]

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str, rows: slice) -> npt.NDArray[np.float32]:
        return np.asarray(self.tensors[name][rows].numpy())
