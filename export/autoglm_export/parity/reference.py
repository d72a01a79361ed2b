"""transformers' own answer to what a checkpoint computes. The only module that imports torch and transformers."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds

from autoglm_export.checkpoint.gguf.paths import gguf_paths
from autoglm_export.checkpoint.huggingface import holds_safetensors
from autoglm_export.errors import ExportError


@dataclass(frozen=True, slots=True)
class Reference:
    """A transformers model in float32 on the CPU. `processor`: of one that takes images."""

    model: Any
    version: str
    processor: Any = None

    @classmethod
    def load(cls, checkpoint: Path) -> Reference:
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise ExportError(
                f"the parity check needs the package {error.name}: pip install 'autoglm-triton[check]'"
            ) from None
        model = _load_model(transformers, torch, checkpoint)
        processor = _load_processor(transformers, checkpoint) if _takes_images(model.config) else None
        return cls(model.eval(), f"transformers {transformers.__version__}", processor)

    def logits(self, ids: TokenIds) -> npt.NDArray[np.float32]:
        """`[len(ids), vocab_size]`, from one forward pass over the whole text."""
        import torch

        with torch.inference_mode():
            output = self.model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
        return np.asarray(output.logits[0].float().numpy())

    def image_features(self, content: bytes, min_pixels: int, max_pixels: int) -> npt.NDArray[np.float32]:
        """[number of tokens, feature size] of an image file that is resized to so many pixels: what stands in place of
        embeddings, and beside it what is added in the decoder's first layers."""
        import torch

        inputs = self._pixels(content, min_pixels, max_pixels)
        with torch.inference_mode():
            output = self.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        return np.concatenate([torch.cat(list(part)).float().numpy() for part in parts], axis=1)

    def image_logits(
        self, ids: TokenIds, image_token_id: int, content: bytes, min_pixels: int, max_pixels: int
    ) -> npt.NDArray[np.float32]:
        """`[len(ids), vocab_size]`, of a prompt that has the image token once for each token of the image."""
        import torch

        inputs, tokens = self._pixels(content, min_pixels, max_pixels), torch.from_numpy(ids.astype(np.int64))[None]
        with torch.inference_mode():
            output = self.model(
                tokens,
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
                mm_token_type_ids=(tokens == image_token_id).int(),
                use_cache=False,
            )
        return np.asarray(output.logits[0].float().numpy())

    def _pixels(self, content: bytes, min_pixels: int, max_pixels: int) -> Any:
        from PIL import Image
        from transformers.image_utils import load_image

        size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        return self.processor(images=[load_image(Image.open(BytesIO(content)))], size=size, return_tensors="pt")


def _takes_images(config: Any) -> bool:
    return hasattr(config, "vision_config")


def _load_processor(transformers: Any, checkpoint: Path) -> Any:
    """With Pillow, as the artifact does it: torchvision rounds differently. None where the checkpoint has none."""
    if not any((checkpoint / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    return transformers.AutoImageProcessor.from_pretrained(checkpoint, local_files_only=True, backend="pil")


def _load_model(transformers: Any, torch: Any, checkpoint: Path) -> Any:
    options = {"dtype": torch.float32, "local_files_only": True}
    found = None if holds_safetensors(checkpoint) else gguf_paths(checkpoint)
    if found is not None:
        return _load_gguf(transformers, found.shards, options)
    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    auto = transformers.AutoModelForImageTextToText if _takes_images(config) else transformers.AutoModelForCausalLM
    return auto.from_pretrained(checkpoint, **options)


def _load_gguf(transformers: Any, shards: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """transformers reads fewer GGUF files than can be exported."""
    if len(shards) > 1:
        raise ExportError(
            f"transformers reads no GGUF model of {len(shards)} shards, so nothing can be compared with it: join them "
            "(llama-gguf-split --merge), or leave out --check"
        )
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(shards[0].parent, gguf_file=shards[0].name, **options)
    except (ValueError, RuntimeError, LookupError) as error:
        raise ExportError(
            f"transformers {transformers.__version__} does not read {shards[0].name}, so nothing can be compared with "
            f"it: {error}"
        ) from None
