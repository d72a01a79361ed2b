"""The weights of a vision tower: their shapes, and where a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoglm_export.errors import TensorError
from autoglm_export.model.vision_spec import NUM_CHANNELS, VisionSpec

from .weights import Array, CheckpointWeights, Shape, Source, TensorStore

PREFIX = "model.visual."


def tower_weights(
    spec: VisionSpec, store: TensorStore, names: Mapping[str, str], *, prefix: str = PREFIX
) -> CheckpointWeights:
    """Canonical name -> float32 array, as `vision_spec` describes them. `names`: as those of a `VisionFamily`, below
    `prefix`. Raises TensorError for what is missing, left over or of another shape."""

    def is_ignored(name: str) -> bool:
        return not name.startswith(prefix) or name.endswith("rotary_pos_emb.inv_freq")

    _check_counts(spec, store)
    shapes = stored_shapes(spec)
    return CheckpointWeights(store, shapes, {name: _source(name, names, prefix) for name in shapes}, is_ignored)


def _check_counts(spec: VisionSpec, store: TensorStore) -> None:
    """Before anything is done for every block that the config names."""
    fused = 2 * (1 + spec.qkv_bias)  # query, key and value are one tensor
    num_tensors = len(_block_shapes(spec)) - fused
    if spec.num_layers * num_tensors > len(store.names()):
        raise TensorError(
            f"the vision_config has {spec.num_layers} blocks, of {num_tensors} tensors each; the checkpoint has "
            f"{len(store.names())} tensors in all"
        )


def stored_shapes(spec: VisionSpec) -> dict[str, Shape]:
    """Canonical name -> shape in the checkpoint, where convolutions have more axes, in the order of the forward
    pass."""
    hidden = spec.hidden_size
    kernel = (NUM_CHANNELS, spec.temporal_patch_size, spec.patch_size, spec.patch_size)
    shapes: dict[str, Shape] = {"patch_embed.weight": (hidden, *kernel), "patch_embed.bias": (hidden,)}
    shapes |= {"post_conv_norm": (hidden,)} if spec.patch_norm else {}
    shapes |= {"position_table": (spec.position_table_size**2, hidden)}
    for block in range(spec.num_layers):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in _block_shapes(spec).items()}
        if block in spec.deepstack:
            shapes |= _deepstack_shapes(spec, spec.deepstack.index(block))
    return shapes | _norm_shapes(spec, "post_norm") | _merger_shapes(spec)


def _block_shapes(spec: VisionSpec) -> dict[str, Shape]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes = _norm_shapes(spec, "attention_norm")
    for name in ("query", "key", "value"):
        shapes |= _linear(name, hidden, hidden, spec.qkv_bias)
    shapes |= _linear("output", hidden, hidden, not spec.gated)
    return shapes | _norm_shapes(spec, "mlp_norm") | _mlp_shapes(spec, hidden, inner, hidden)


def _norm_shapes(spec: VisionSpec, name: str) -> dict[str, Shape]:
    return {name: (spec.hidden_size,)} if spec.norm == "rms" else _layer_norm(name, spec.hidden_size)


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _mlp_shapes(spec: VisionSpec, width: int, inner: int, output: int) -> dict[str, Shape]:
    gate = {"gate.weight": (inner, width)} if spec.gated else {}
    return gate | _linear("up", inner, width, not spec.gated) | _linear("down", output, inner, not spec.gated)


def _merger_shapes(spec: VisionSpec) -> dict[str, Shape]:
    output, inner, merge = spec.output_size, spec.merger_size, spec.merge_size
    width, shapes = spec.joined_size, dict[str, Shape]()
    if spec.gated:
        width = output
        shapes |= {"downsample.weight": (output, spec.hidden_size, merge, merge), "downsample.bias": (output,)}
        shapes |= {"merger.projection.weight": (output, output)} | _layer_norm("merger.norm", output)
    return shapes | {f"merger.{name}": shape for name, shape in _mlp_shapes(spec, width, inner, output).items()}


def _deepstack_shapes(spec: VisionSpec, index: int) -> dict[str, Shape]:
    shapes = _layer_norm("norm", spec.joined_size)
    shapes |= _mlp_shapes(spec, spec.joined_size, spec.merger_size, spec.output_size)
    return {f"deepstack.{index}.{name}": shape for name, shape in shapes.items()}


def _source(name: str, names: Mapping[str, str], prefix: str) -> Source:
    words = name.split(".")
    number = words[1] if words[0] in ("blocks", "deepstack") else ""
    generic = ".".join([words[0], "{i}", *words[2:]]) if number else name
    if generic in names:
        return Source(prefix + names[generic].format(i=number))
    layer, _, kind = generic.rpartition(".")
    base, _, part_of = names[layer].partition("#")
    part, _, parts = part_of.partition("/")
    undo = {"patch_embed.weight": _frames_summed, "downsample.weight": _patch_after_patch}.get(name)
    return Source(f"{prefix}{base.format(i=number)}.{kind}", int(part or 0), int(parts or 1), undo)


def _frames_summed(kernel: Array) -> Array:
    """[out, channels, frames, height, width] -> [out, channels * height * width]: every frame shows the same patch."""
    summed = kernel.sum(axis=2, dtype=np.float64).reshape(len(kernel), -1)
    return np.asarray(summed, np.float32)


def _patch_after_patch(kernel: Array) -> Array:
    """[out, in, height, width] -> [out, height * width * in]"""
    return np.ascontiguousarray(kernel.transpose(0, 2, 3, 1)).reshape(len(kernel), -1)
