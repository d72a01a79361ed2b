"""Where a GGUF file keeps the weights of a decoder, and what its converter did to them.

Names of tensors: `gguf.constants`. Query, key and value may be one tensor, and so may gate and up (under the name of
up, gate first), as ChatGLM and GLM-4 have them.

llama.cpp rotates neighbouring pairs in llama models, so its converter reorders the rows of each query and key head
from (all first halves, all second halves) to pairs; with three positions a token (GLM-4.1V) it rotates halves, so
there the converter goes the other way (`LlamaModel.permute` and `Glm4Model.normal_to_neox` in llama.cpp's conversion/,
commit 051139f). Both are undone here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import numpy as np

from autoglm_export.checkpoint.weights import Array, Source, weight_shapes
from autoglm_export.model.spec import ModelSpec

# canonical name -> GGUF name, written as in families.py
NAMES = {
    "embed": "token_embd.weight",
    "lm_head": "output.weight",
    "final_norm": "output_norm.weight",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm.weight",
    "layers.{i}.query.weight": "blk.{i}.attn_q.weight",
    "layers.{i}.query.bias": "blk.{i}.attn_q.bias",
    "layers.{i}.key.weight": "blk.{i}.attn_k.weight",
    "layers.{i}.key.bias": "blk.{i}.attn_k.bias",
    "layers.{i}.value.weight": "blk.{i}.attn_v.weight",
    "layers.{i}.value.bias": "blk.{i}.attn_v.bias",
    "layers.{i}.query_norm": "blk.{i}.attn_q_norm.weight",
    "layers.{i}.key_norm": "blk.{i}.attn_k_norm.weight",
    "layers.{i}.output.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.output.bias": "blk.{i}.attn_output.bias",
    "layers.{i}.post_attention_norm": "blk.{i}.post_attention_norm.weight",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm.weight",
    "layers.{i}.gate.weight": "blk.{i}.ffn_gate.weight",
    "layers.{i}.gate.bias": "blk.{i}.ffn_gate.bias",
    "layers.{i}.up.weight": "blk.{i}.ffn_up.weight",
    "layers.{i}.up.bias": "blk.{i}.ffn_up.bias",
    "layers.{i}.down.weight": "blk.{i}.ffn_down.weight",
    "layers.{i}.down.bias": "blk.{i}.ffn_down.bias",
    "layers.{i}.post_mlp_norm": "blk.{i}.post_ffw_norm.weight",
}
_FUSED_QKV = ("query", "key", "value")
_FUSED_UP = ("gate", "up")


def gguf_sources(spec: ModelSpec, names: Collection[str]) -> dict[str, Source]:
    """Canonical name -> where a file with the tensors `names` keeps it."""
    return {name: _source_of(name, spec, names) for name in weight_shapes(spec)}


def _source_of(name: str, spec: ModelSpec, names: Collection[str]) -> Source:
    words = name.split(".")
    if words[0] != "layers":
        return Source(NAMES[name])
    _, layer, linear, *kind = words
    block, undo = f"blk.{layer}", _undo(spec, linear)
    if linear in _FUSED_QKV and f"{block}.attn_qkv.weight" in names:
        return Source(f"{block}.attn_qkv.{kind[0]}", undo=undo, span=_span(spec, linear))
    if linear in _FUSED_UP and f"{block}.ffn_gate.weight" not in names:
        return Source(f"{block}.ffn_up.{kind[0]}", _FUSED_UP.index(linear), 2)
    return Source(NAMES[".".join(["layers", "{i}", linear, *kind])].format(i=layer), undo=undo)


def _span(spec: ModelSpec, linear: str) -> tuple[int, int]:
    """(first row of `linear`, all rows) where query, key and value lie one behind the other."""
    heads = {"query": 0, "key": spec.num_heads, "value": spec.num_heads + spec.num_kv_heads}
    return heads[linear] * spec.head_size, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size


def _undo(spec: ModelSpec, linear: str) -> Callable[[Array], Array] | None:
    heads = {"query": spec.num_heads, "key": spec.num_kv_heads}.get(linear)
    if heads is None:
        return None
    if spec.family == "llama":
        return partial(pairs_to_halves, num_heads=heads)
    if spec.family == "glm4v":
        return partial(halves_to_pairs, num_heads=heads, dims=spec.rope.dims)
    return None


def pairs_to_halves(rows: Array, *, num_heads: int) -> Array:
    """Reorder each head's rows from rotary pairs (0, 1), (2, 3), ... to halves (0, n/2), (1, n/2 + 1), ..."""
    paired = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows.shape))


def halves_to_pairs(rows: Array, *, num_heads: int, dims: int) -> Array:
    """Reorder the first `dims` rows of each head from halves to rotary pairs; the others stay."""
    heads = np.array(rows.reshape(num_heads, -1, *rows.shape[1:]))
    halves = heads[:, :dims].reshape(num_heads, 2, dims // 2, *rows.shape[1:])
    heads[:, :dims] = halves.swapaxes(1, 2).reshape(num_heads, dims, *rows.shape[1:])
    return heads.reshape(rows.shape)
