"""`Ops` over float32 arrays in plain numpy, for the rows of several sequences that may begin behind a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec

_SLICE = 1 << 14  # rows of a table that are multiplied at a time


@dataclass(frozen=True, slots=True, eq=False)
class CachedTokens:
    """New tokens, and what the caches of every layer hold before them: `[num_kv_heads, start, head_size]`, or
    nothing."""

    token_ids: TokenIds
    keys: Array | None = None
    values: Array | None = None

    @property
    def start(self) -> int:
        return 0 if self.keys is None else self.keys.shape[1]


class HeldWeights(Protocol):
    """Weights as a runtime multiplies by them; `layers` share their inputs and stand side by side."""

    def vector(self, name: str) -> Array: ...

    def table(self, name: str) -> npt.NDArray[Any]:
        """`[vocab_size, hidden_size]` of any floating type: embedding or head."""
        ...

    def matrix(self, layers: Sequence[str]) -> Array:
        """`[outputs, inputs]`"""
        ...

    def bias(self, layers: Sequence[str]) -> Array | None:
        """`[outputs]`"""
        ...


class ReferenceOps:
    """All rows stay: who wants the logits of some takes them."""

    def __init__(self, spec: ModelSpec, weights: HeldWeights, sequences: Sequence[CachedTokens]) -> None:
        self._spec, self._weights, self._sequences = spec, weights, sequences
        self._ends = np.cumsum([len(sequence.token_ids) for sequence in sequences])[:-1]
        self._positions = np.concatenate([np.arange(len(s.token_ids)) + s.start for s in sequences])
        tables = spec.rope.sines_and_cosines(int(self._positions.max()) + 1)
        self._sin, self._cos = (table.astype(np.float32)[self._positions][:, None] for table in tables)
        self.result: Array | None = None  # [rows, vocab_size], once `logits` was called

    def embed(self, weight: str) -> Array:
        ids = np.concatenate([sequence.token_ids for sequence in self._sequences])
        return np.asarray(self._weights.table(weight)[ids], np.float32)

    def rms_norm(self, x: Array, weight: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean_square + np.float32(self._spec.norm_eps)) * self._weights.vector(weight))

    def add_rms_norm(self, x: Array, delta: Array, weight: str) -> tuple[Array, Array]:
        total = x + delta
        return total, self.rms_norm(total, weight)

    def linear(self, x: Array, *layers: str) -> Array:
        product: Array = x @ self._weights.matrix(layers).T
        bias = self._weights.bias(layers)
        return product if bias is None else product + bias

    def swiglu(self, gate: Array, up: Array) -> Array:
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and its share 0
            return np.asarray(gate / (1 + np.exp(-gate)) * up)

    def add_features(self, x: Array, part: int) -> Array:
        return x  # a text has none

    def select_rows(self, x: Array) -> Array:
        return x

    def logits(self, x: Array, weight: str) -> None:
        table = self._weights.table(weight)
        slices = (table[first : first + _SLICE].astype(np.float32) for first in range(0, len(table), _SLICE))
        parts = [x @ part.T for part in slices]
        self.result = np.concatenate(parts, axis=1)

    def attention(self, qkv: Array, layer: int, query_norm: str | None, key_norm: str | None) -> Array:
        query, key, value = self._heads(qkv)
        query, key = self._turned(query, query_norm), self._turned(key, key_norm)
        parts = zip(*(np.split(part, self._ends) for part in (query, key, value)), self._sequences, strict=True)
        return np.concatenate([self._attended(*part) for part in parts])

    def queries(self, normed: Array, layer: int) -> Array:
        """[rows, num_heads, head_size], turned and scaled, from the layer's normed input."""
        query, _, _ = self._projected(normed, layer)
        return np.asarray(self._turned(query, self._norm_of(layer, "query")) * self._scale)

    def keys_and_values(self, normed: Array, layer: int) -> tuple[Array, Array]:
        """[rows, num_kv_heads, head_size] each: what the layer writes into its caches."""
        _, key, value = self._projected(normed, layer)
        return self._turned(key, self._norm_of(layer, "key")), value

    @property
    def _scale(self) -> np.float32:
        return np.float32(self._spec.head_size**-0.5)

    def _projected(self, normed: Array, layer: int) -> tuple[Array, Array, Array]:
        return self._heads(self.linear(normed, *(f"layers.{layer}.{name}" for name in ("query", "key", "value"))))

    def _norm_of(self, layer: int, name: str) -> str | None:
        return f"layers.{layer}.{name}_norm" if self._spec.qk_norm else None

    def _heads(self, qkv: Array) -> tuple[Array, Array, Array]:
        spec = self._spec
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_size
        query, key, value = (part.reshape(len(qkv), -1, spec.head_size) for part in np.split(qkv, sizes, axis=1))
        return query, key, value

    def _turned(self, x: Array, norm: str | None) -> Array:
        """Each head turned by its token's position."""
        rope = self._spec.rope
        normed = x if norm is None else self.rms_norm(x, norm)
        half, step = (1, 2) if rope.interleaved else (rope.dims // 2, 1)
        first = slice(0, rope.dims if rope.interleaved else half, step)
        second = slice(half, rope.dims, step)
        turned = normed.copy()
        turned[..., first] = normed[..., first] * self._cos - normed[..., second] * self._sin
        turned[..., second] = normed[..., second] * self._cos + normed[..., first] * self._sin
        return turned

    def _attended(self, query: Array, key: Array, value: Array, sequence: CachedTokens) -> Array:
        """One sequence: `[tokens, heads, head_size]` -> `[tokens, num_heads * head_size]`."""
        keys, values = (
            part.transpose(1, 0, 2) if cached is None else np.concatenate([cached, part.transpose(1, 0, 2)], axis=1)
            for cached, part in ((sequence.keys, key), (sequence.values, value))
        )
        group = self._spec.num_heads // self._spec.num_kv_heads
        seen = np.arange(keys.shape[1])[None] <= sequence.start + np.arange(len(query))[:, None]
        rows = [
            _softmax(np.where(seen, query[:, head] @ keys[head // group].T * self._scale, -np.inf))
            @ values[head // group]
            for head in range(self._spec.num_heads)
        ]
        return np.concatenate(rows, axis=1)


def _softmax(scores: Array) -> Array:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
