"""The tiny checkpoints that take images, one of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_engine.manifest import VisionSettings

from tests.support.export import tiny_glm4v, tiny_qwen3_vl
from tests.support.vision.settings import QWEN3_VL, vision_settings


@dataclass(frozen=True)
class SeeingModel:
    """`make`: transformers' model; `write`: the same, and its checkpoint in a folder. `settings`: of its artifact."""

    make: Callable[..., Any]
    write: Callable[..., Any]
    ids: Mapping[str, int]  # of special tokens
    begin: int
    image: int
    end: int
    preprocessor: Mapping[str, Any]
    settings: VisionSettings

    def pixels(self, images: Any, **changes: Any) -> tuple[Any, Any]:
        return tiny_glm4v.reference_pixels(images, {**self.preprocessor, **changes})

    def logits(self, model: Any, ids: Any, images: Any, num_tokens: int) -> Any:
        """As `reference_logits`."""
        return tiny_glm4v.reference_logits(model, ids, images, num_tokens, dict(self.preprocessor))

    def greedy(self, model: Any, ids: Any, images: Any, num_tokens: int) -> list[int]:
        return [int(row.argmax()) for row in self.logits(model, ids, images, num_tokens)]


SEEING = {
    "glm4v": SeeingModel(
        make=tiny_glm4v.tiny_glm4v,
        write=tiny_glm4v.write_tiny_glm4v,
        ids=tiny_glm4v.IDS,
        begin=tiny_glm4v.BEGIN_IMAGE,
        image=tiny_glm4v.IMAGE,
        end=tiny_glm4v.END_IMAGE,
        preprocessor=tiny_glm4v.PREPROCESSOR,
        settings=vision_settings(),
    ),
    "qwen3_vl": SeeingModel(
        make=tiny_qwen3_vl.tiny_qwen3_vl,
        write=tiny_qwen3_vl.write_tiny_qwen3_vl,
        ids=tiny_qwen3_vl.IDS,
        begin=tiny_qwen3_vl.BEGIN_IMAGE,
        image=tiny_qwen3_vl.IMAGE,
        end=tiny_qwen3_vl.END_IMAGE,
        preprocessor=tiny_qwen3_vl.PREPROCESSOR,
        settings=vision_settings(**QWEN3_VL),
    ),
}
