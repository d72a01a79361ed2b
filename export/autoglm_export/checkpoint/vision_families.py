"""What sets apart the families that take images: one literal table each, tensor names on the right as a checkpoint has
them below `model.visual.`.

Names of blocks, and of the layers that merge a deepstack block's output, hold `{i}`; `name#0/3` is the first third of
that tensor's rows. Source of the names: the state dicts of transformers 5's `Glm4vVisionModel` and
`Qwen3VLVisionModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_export.model.vision_spec import VisionSpec

from .vision_config import glm4v_spec, qwen3_vl_spec

Channels = tuple[float, float, float]
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)

COMMON = {
    "patch_embed": "patch_embed.proj",
    "blocks.{i}.query": "blocks.{i}.attn.qkv#0/3",
    "blocks.{i}.key": "blocks.{i}.attn.qkv#1/3",
    "blocks.{i}.value": "blocks.{i}.attn.qkv#2/3",
    "blocks.{i}.output": "blocks.{i}.attn.proj",
}


@dataclass(frozen=True, slots=True)
class ProcessorFamily:
    """An image processor's names, and what its file leaves out. `frames`: that a still image counts as, against the
    limits of its pixels. `grows_small`: an image narrower than a token is first made as wide as one."""

    types: tuple[str, ...]
    min_pixels: int
    max_pixels: int
    frames: int
    grows_small: bool


@dataclass(frozen=True, slots=True)
class VisionFamily:
    """`tokens`: those that begin an image, stand for each of its rows, and end it, with the config's keys for them."""

    spec: Callable[[Mapping[str, Any], int], VisionSpec]
    names: Mapping[str, str]
    tokens: Mapping[str, str]
    processor: ProcessorFamily


GLM4V = VisionFamily(
    spec=glm4v_spec,
    names=COMMON
    | {
        "post_conv_norm": "post_conv_layernorm.weight",
        "position_table": "embeddings.position_embedding.weight",
        "blocks.{i}.attention_norm": "blocks.{i}.norm1.weight",
        "blocks.{i}.mlp_norm": "blocks.{i}.norm2.weight",
        "blocks.{i}.gate": "blocks.{i}.mlp.gate_proj",
        "blocks.{i}.up": "blocks.{i}.mlp.up_proj",
        "blocks.{i}.down": "blocks.{i}.mlp.down_proj",
        "post_norm": "post_layernorm.weight",
        "downsample": "downsample",
        "merger.projection": "merger.proj",
        "merger.norm": "merger.post_projection_norm",
        "merger.gate": "merger.gate_proj",
        "merger.up": "merger.up_proj",
        "merger.down": "merger.down_proj",
    },
    tokens={
        "<|begin_of_image|>": "image_start_token_id",
        "<|image|>": "image_token_id",
        "<|end_of_image|>": "image_end_token_id",
    },
    processor=ProcessorFamily(
        types=("Glm4vImageProcessor", "Glm4vImageProcessorFast", "Glm4vImageProcessorPil"),
        min_pixels=112 * 112,
        max_pixels=28 * 28 * 15000,
        frames=2,
        grows_small=True,
    ),
)
QWEN3_VL = VisionFamily(
    spec=qwen3_vl_spec,
    names=COMMON
    | {
        "position_table": "pos_embed.weight",
        "blocks.{i}.attention_norm": "blocks.{i}.norm1",
        "blocks.{i}.mlp_norm": "blocks.{i}.norm2",
        "blocks.{i}.up": "blocks.{i}.mlp.linear_fc1",
        "blocks.{i}.down": "blocks.{i}.mlp.linear_fc2",
        "post_norm": "merger.norm",
        "merger.up": "merger.linear_fc1",
        "merger.down": "merger.linear_fc2",
        "deepstack.{i}.norm": "deepstack_merger_list.{i}.norm",
        "deepstack.{i}.up": "deepstack_merger_list.{i}.linear_fc1",
        "deepstack.{i}.down": "deepstack_merger_list.{i}.linear_fc2",
    },
    tokens={
        "<|vision_start|>": "vision_start_token_id",
        "<|image_pad|>": "image_token_id",
        "<|vision_end|>": "vision_end_token_id",
    },
    processor=ProcessorFamily(
        types=("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"),
        min_pixels=56 * 56,
        max_pixels=28 * 28 * 1280,
        frames=1,
        grows_small=False,
    ),
)
VISION_FAMILIES = {"glm4v": GLM4V, "qwen3_vl": QWEN3_VL}
