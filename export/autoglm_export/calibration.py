"""A pass of the decoder over a text, to see what each linear layer's inputs look like.

It runs once over the whole text, in float32 on the CPU, layer by layer: each weight is read once, so that a model which does
not fit into memory can be calibrated too. What sees the inputs also says which weights the pass goes on with: quantised
ones, so that later layers are calibrated on what they will really be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds

from .decoder import build_decoder
from .lowering import Progress, no_progress
from .spec import ModelSpec
from .weights import Array

_SEQUENCE = 256  # tokens that attend to each other; a longer text is cut


class Observer(Protocol):
    def observe(self, inputs: Array, layers: Sequence[str]) -> Sequence[Array]:
        """`inputs` `[num_tokens, width]` of `layers`, which share them; returns the layers' weights to go on with."""
        ...


class CalibrationOps:
    """`Ops` over arrays `[num_tokens, width]`: sequences side by side, each attending to itself alone."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Array],
        token_ids: Sequence[TokenIds],
        observer: Observer,
        progress: Progress = no_progress,
    ) -> None:
        self._spec, self._weights, self._observer, self._progress = spec, weights, observer, progress
        self._sequences = [chunk for ids in token_ids for chunk in _cut(ids)]
        assert self._sequences, "calibration needs at least one token"
        self.final: Array | None = None  # [num_tokens, hidden_size], what the head would read

    def embed(self, weight: str) -> Array:
        rows: Array = self._weights[weight][np.concatenate(self._sequences)]
        return rows

    def rms_norm(self, x: Array, weight: str) -> Array:
        length = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self._spec.norm_eps))
        normed: Array = x / length * self._weights[weight]
        return normed

    def add_rms_norm(self, x: Array, delta: Array, weight: str) -> tuple[Array, Array]:
        total = x + delta
        return total, self.rms_norm(total, weight)

    def linear(self, x: Array, *layers: str) -> Array:
        weights = self._observer.observe(x, layers)
        return np.concatenate([self._product(x, name, weight) for name, weight in zip(layers, weights, strict=True)], 1)

    def attention(self, qkv: Array, layer: int, query_norm: str | None, key_norm: str | None) -> Array:
        self._progress("calibrate", layer / self._spec.num_layers)
        ends = np.cumsum([len(sequence) for sequence in self._sequences])
        parts = np.split(qkv, ends[:-1])
        return np.concatenate([self._attended(part, query_norm, key_norm) for part in parts])

    def swiglu(self, gate: Array, up: Array) -> Array:
        gated: Array = gate / (1 + np.exp(-gate)) * up
        return gated

    def select_rows(self, x: Array) -> Array:
        return x

    def logits(self, x: Array, weight: str) -> None:
        self.final = x

    def _product(self, x: Array, name: str, weight: Array) -> Array:
        product: Array = x @ weight.T
        return product + self._weights[f"{name}.bias"] if f"{name}.bias" in self._weights else product

    def _attended(self, qkv: Array, query_norm: str | None, key_norm: str | None) -> Array:
        spec, count = self._spec, len(qkv)
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_size
        query, key, value = (part.reshape(count, -1, spec.head_size) for part in np.split(qkv, sizes, axis=1))
        if query_norm and key_norm:
            query, key = self.rms_norm(query, query_norm), self.rms_norm(key, key_norm)
        group = spec.num_heads // spec.num_kv_heads
        keys, values = np.repeat(turned(spec, key), group, axis=1), np.repeat(value, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", turned(spec, query), keys) * np.float32(spec.head_size**-0.5)
        scores[:, np.triu(np.ones((count, count), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        attended: Array = np.einsum("hqk,khd->qhd", shares, values).reshape(count, -1).astype(np.float32)
        return attended


def turned(spec: ModelSpec, heads: Array) -> Array:
    """`heads` [positions 0 ..., heads, head_size], rotated."""
    rope, half = spec.rope, spec.rope.dims // 2
    angles = (np.arange(len(heads))[:, None] * rope.inverse_frequencies())[:, None, :]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    pairs = (
        (slice(0, rope.dims, 2), slice(1, rope.dims, 2)) if rope.interleaved else (slice(half), slice(half, 2 * half))
    )
    first, second = heads[..., pairs[0]], heads[..., pairs[1]]
    result = heads.copy()
    result[..., pairs[0]] = first * cos - second * sin
    result[..., pairs[1]] = second * cos + first * sin
    return result


def calibrate(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    token_ids: Sequence[TokenIds],
    observer: Observer,
    progress: Progress = no_progress,
) -> None:
    """Show `observer` the inputs of every linear layer, in order, over the texts `token_ids`."""
    build_decoder(spec, CalibrationOps(spec, weights, token_ids, observer, progress))
    progress("calibrate", 1.0)


class ActivationMaxima:
    """Layer -> the largest magnitude among its inputs."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self.of: dict[str, float] = {}

    def observe(self, inputs: Array, layers: Sequence[str]) -> list[Array]:
        largest = float(np.abs(inputs).max()) or 1.0
        self.of.update(dict.fromkeys(layers, largest))
        return [self._weights[f"{name}.weight"] for name in layers]


def _cut(ids: TokenIds) -> list[npt.NDArray[np.int32]]:
    return [ids[start : start + _SEQUENCE] for start in range(0, len(ids), _SEQUENCE)]
