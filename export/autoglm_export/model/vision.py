"""The vision tower of every family, written once: which operators, in which order, on which weights.

`VisionOps` is to it what `Ops` is to the decoder. Handles (`T`) are opaque; an activation is rows [patches or tokens of
one image, width]. The image's patches, and what its grid says of their places, are the back-end's inputs.
"""

from __future__ import annotations

from typing import Protocol

from .ops import T
from .vision_spec import VisionSpec


class VisionOps(Protocol[T]):
    def patches(self) -> T:
        """The normalised pixels [number of patches, 3 * patch_size^2]."""
        ...

    def positions(self, table: str) -> T:
        """The learned positions `table`, interpolated to the image's grid: [number of patches, hidden_size]."""
        ...

    def rms_norm(self, x: T, weight: str) -> T:
        """x / sqrt(mean(x^2) + eps) * weight, in float32, row by row."""
        ...

    def add_rms_norm(self, x: T, delta: T, weight: str) -> tuple[T, T]:
        """(x + delta, rms_norm(x + delta))."""
        ...

    def layer_norm(self, x: T, name: str) -> T:
        """(x - mean(x)) / sqrt(var(x) + eps) * name.weight + name.bias, row by row; the merger's eps."""
        ...

    def add_layer_norm(self, x: T, delta: T, name: str) -> tuple[T, T]:
        """(x + delta, its layer norm), with the blocks' eps."""
        ...

    def linear(self, x: T, layer: str) -> T:
        """x @ layer.weight^T (+ layer.bias, if it exists)."""
        ...

    def attention(self, query: T, key: T, value: T) -> T:
        """Every patch attends to all; queries and keys turn by their rows and columns. Scale 1 / sqrt(head_size)."""
        ...

    def swiglu(self, gate: T, up: T) -> T:
        """silu(gate) * up."""
        ...

    def gelu(self, x: T) -> T:
        """x * (1 + erf(x / sqrt(2))) / 2."""
        ...

    def gelu_tanh(self, x: T) -> T:
        """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2."""
        ...

    def join(self, x: T) -> T:
        """The merge_size^2 rows of a token side by side: [number of tokens, merge_size^2 * width]."""
        ...

    def features(self, *parts: T) -> None:
        """The result, side by side: [number of tokens, output_size] float32 each."""
        ...


def build_tower(spec: VisionSpec, ops: VisionOps[T]) -> None:
    """Issue the computation of one image, from patches to features, to `ops`."""
    residual = ops.linear(ops.patches(), "patch_embed")
    if spec.patch_norm:
        residual = ops.rms_norm(residual, "post_conv_norm")
    residual, normed = _add_norm(spec, ops, residual, ops.positions("position_table"), _first_norm(spec, 0))
    further: list[T] = []
    for block in range(spec.num_layers):
        residual, normed = build_block(spec, ops, block, residual, normed)
        if block in spec.deepstack:
            prefix = f"deepstack.{len(further)}"
            further.append(_merged_plainly(ops, ops.layer_norm(ops.join(residual), f"{prefix}.norm"), prefix))
    merged = _merged(ops, normed) if spec.gated else _merged_plainly(ops, ops.join(normed), "merger")
    ops.features(merged, *further)


def build_block(spec: VisionSpec, ops: VisionOps[T], block: int, residual: T, normed: T) -> tuple[T, T]:
    """One block, from the residual stream and its norm to the next block's (or to the last norm)."""
    prefix = f"blocks.{block}"
    query, key, value = (ops.linear(normed, f"{prefix}.{name}") for name in ("query", "key", "value"))
    attended = ops.linear(ops.attention(query, key, value), f"{prefix}.output")
    residual, normed = _add_norm(spec, ops, residual, attended, f"{prefix}.mlp_norm")
    hidden = _gated(ops, normed, prefix) if spec.gated else ops.gelu_tanh(ops.linear(normed, f"{prefix}.up"))
    return _add_norm(spec, ops, residual, ops.linear(hidden, f"{prefix}.down"), _first_norm(spec, block + 1))


def _add_norm(spec: VisionSpec, ops: VisionOps[T], x: T, delta: T, name: str) -> tuple[T, T]:
    return ops.add_rms_norm(x, delta, name) if spec.norm == "rms" else ops.add_layer_norm(x, delta, name)


def _first_norm(spec: VisionSpec, block: int) -> str:
    return f"blocks.{block}.attention_norm" if block < spec.num_layers else "post_norm"


def _gated(ops: VisionOps[T], x: T, prefix: str) -> T:
    return ops.swiglu(ops.linear(x, f"{prefix}.gate"), ops.linear(x, f"{prefix}.up"))


def _merged_plainly(ops: VisionOps[T], joined: T, prefix: str) -> T:
    return ops.linear(ops.gelu(ops.linear(joined, f"{prefix}.up")), f"{prefix}.down")


def _merged(ops: VisionOps[T], normed: T) -> T:
    projected = ops.linear(ops.linear(ops.join(normed), "downsample"), "merger.projection")
    hidden = ops.gelu(ops.layer_norm(projected, "merger.norm"))
    return ops.linear(_gated(ops, hidden, "merger"), "merger.down")
