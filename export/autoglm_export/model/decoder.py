"""The decoder of every family, written once: which operators, in which order, on which weights.

What differs between families is data in `ModelSpec`; what differs between runtimes is behind `Ops`.
"""

from __future__ import annotations

from .ops import Ops, T
from .spec import ModelSpec


def build_decoder(spec: ModelSpec, ops: Ops[T]) -> None:
    """Issue one step's computation, from token ids to logits, to `ops`."""
    residual = ops.embed("embed")
    normed = ops.rms_norm(residual, "layers.0.attention_norm")
    for layer in range(spec.num_layers):
        residual, normed = build_layer(spec, ops, layer, residual, normed)
    ops.logits(normed, "embed" if spec.tied_embeddings else "lm_head")


def build_layer(spec: ModelSpec, ops: Ops[T], layer: int, residual: T, normed: T) -> tuple[T, T]:
    """One layer, from the residual stream and its norm to the next layer's (or to the final norm)."""
    prefix, is_last = f"layers.{layer}", layer + 1 == spec.num_layers
    attended = _attention(spec, ops, layer, normed)
    if is_last:  # after the last keys and values are written, only the rows that give logits matter
        residual, attended = ops.select_rows(residual), ops.select_rows(attended)
    attended = ops.linear(attended, f"{prefix}.output")
    if spec.sandwich_norm:
        attended = ops.rms_norm(attended, f"{prefix}.post_attention_norm")
    residual, normed = ops.add_rms_norm(residual, attended, f"{prefix}.mlp_norm")
    hidden = ops.swiglu(ops.linear(normed, f"{prefix}.gate"), ops.linear(normed, f"{prefix}.up"))
    hidden = ops.linear(hidden, f"{prefix}.down")
    if spec.sandwich_norm:
        hidden = ops.rms_norm(hidden, f"{prefix}.post_mlp_norm")
    if layer < spec.num_deepstack:
        hidden = ops.add_features(hidden, layer + 1)
    next_norm = "final_norm" if is_last else f"layers.{layer + 1}.attention_norm"
    return ops.add_rms_norm(residual, hidden, next_norm)


def _attention(spec: ModelSpec, ops: Ops[T], layer: int, normed: T) -> T:
    prefix = f"layers.{layer}"
    qkv = ops.linear(normed, f"{prefix}.query", f"{prefix}.key", f"{prefix}.value")
    norms = (f"{prefix}.query_norm", f"{prefix}.key_norm") if spec.qk_norm else (None, None)
    return ops.attention(qkv, layer, *norms)
