"""The weights of a vision tower: their shapes, and where a glm4v checkpoint keeps them.

Source of the names: the state dict of transformers 5's `Glm4vVisionModel`.
"""

from __future__ import annotations

import numpy as np

from autoglm_export.errors import TensorError
from autoglm_export.model.vision_spec import NUM_CHANNELS, VisionSpec

from .weights import Array, CheckpointWeights, Shape, Source, TensorStore

PREFIX = "model.visual."
_TENSORS_OF_A_BLOCK = 7  # two norms, two of attention, three of the MLP
_NAMES = {
    "patch_embed": "patch_embed.proj",
    "post_conv_norm": "post_conv_layernorm.weight",
    "position_table": "embeddings.position_embedding.weight",
    "blocks.{i}.attention_norm": "blocks.{i}.norm1.weight",
    "blocks.{i}.query": "blocks.{i}.attn.qkv#0/3",
    "blocks.{i}.key": "blocks.{i}.attn.qkv#1/3",
    "blocks.{i}.value": "blocks.{i}.attn.qkv#2/3",
    "blocks.{i}.output": "blocks.{i}.attn.proj",
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
}


def tower_weights(spec: VisionSpec, store: TensorStore) -> CheckpointWeights:
    """Canonical name -> float32 array, as `vision_spec` describes them. Raises TensorError for what is missing, left
    over or of another shape."""

    def is_ignored(name: str) -> bool:
        return not name.startswith(PREFIX) or name.endswith("rotary_pos_emb.inv_freq")

    _check_counts(spec, store)
    shapes = stored_shapes(spec)
    return CheckpointWeights(store, shapes, {name: _source(name) for name in shapes}, is_ignored)


def _check_counts(spec: VisionSpec, store: TensorStore) -> None:
    """Before anything is done for every block that the config names."""
    if spec.num_layers * _TENSORS_OF_A_BLOCK > len(store.names()):
        raise TensorError(
            f"the vision_config has {spec.num_layers} blocks, of {_TENSORS_OF_A_BLOCK} tensors each; the checkpoint "
            f"has {len(store.names())} tensors in all"
        )


def stored_shapes(spec: VisionSpec) -> dict[str, Shape]:
    """Canonical name -> shape in the checkpoint, where two are convolutions, in the order of the forward pass."""
    hidden, output, merge = spec.hidden_size, spec.output_size, spec.merge_size
    kernel = (NUM_CHANNELS, spec.temporal_patch_size, spec.patch_size, spec.patch_size)
    shapes: dict[str, Shape] = {"patch_embed.weight": (hidden, *kernel), "patch_embed.bias": (hidden,)}
    shapes |= {"post_conv_norm": (hidden,), "position_table": (spec.position_table_size**2, hidden)}
    for block in range(spec.num_layers):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in _block_shapes(spec).items()}
    shapes |= {"post_norm": (hidden,)}
    shapes |= {"downsample.weight": (output, hidden, merge, merge), "downsample.bias": (output,)}
    shapes |= {"merger.projection.weight": (output, output)}
    shapes |= {"merger.norm.weight": (output,), "merger.norm.bias": (output,)}
    return shapes | {f"merger.{name}": shape for name, shape in _gated_shapes(output, spec.merger_size).items()}


def _block_shapes(spec: VisionSpec) -> dict[str, Shape]:
    hidden = spec.hidden_size
    shapes: dict[str, Shape] = {"attention_norm": (hidden,)}
    for name in ("query", "key", "value"):
        shapes |= {f"{name}.weight": (hidden, hidden), **({f"{name}.bias": (hidden,)} if spec.qkv_bias else {})}
    shapes |= {"output.weight": (hidden, hidden), "mlp_norm": (hidden,)}
    return shapes | _gated_shapes(hidden, spec.intermediate_size)


def _gated_shapes(width: int, inner: int) -> dict[str, Shape]:
    return {"gate.weight": (inner, width), "up.weight": (inner, width), "down.weight": (width, inner)}


def _source(name: str) -> Source:
    words = name.split(".")
    block = words[1] if words[0] == "blocks" else ""
    generic = ".".join(["blocks", "{i}", *words[2:]]) if block else name
    if generic in _NAMES:
        return Source(PREFIX + _NAMES[generic].format(i=block))
    linear, _, kind = generic.rpartition(".")
    base, _, part_of = _NAMES[linear].partition("#")
    part, _, parts = part_of.partition("/")
    undo = {"patch_embed.weight": _frames_summed, "downsample.weight": _patch_after_patch}.get(name)
    return Source(f"{PREFIX}{base.format(i=block)}.{kind}", int(part or 0), int(parts or 1), undo)


def _frames_summed(kernel: Array) -> Array:
    """[out, channels, frames, height, width] -> [out, channels * height * width]: every frame shows the same patch."""
    summed = kernel.sum(axis=2, dtype=np.float64).reshape(len(kernel), -1)
    return np.asarray(summed, np.float32)


def _patch_after_patch(kernel: Array) -> Array:
    """[out, in, height, width] -> [out, height * width * in]"""
    return np.ascontiguousarray(kernel.transpose(0, 2, 3, 1)).reshape(len(kernel), -1)
