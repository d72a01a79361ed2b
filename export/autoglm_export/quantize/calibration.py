"""What goes into each linear layer on a text, computed by `reproducible.Kernels`: weights are rounded to suit it.

The decoder runs layer by layer, over all texts at once, as far as is asked for; only one layer's rows are kept at a
time.

Also of a decoder that takes images it sees texts alone: rows of images are rounded about the mean of a text's rows, and
weigh nothing where weights are rounded. Their scales are their own, as every row's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds

from autoglm_export.checkpoint.weights import Array, prepared
from autoglm_export.model.decoder import build_layer
from autoglm_export.model.spec import ModelSpec
from autoglm_export.reproducible import kernels

FIRST_TOKEN_WEIGHT = 16.0  # all later tokens attend to the first one; a text has only one


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Rows that a linear layer reads, and how much an error in each row's product counts."""

    rows: Array  # [tokens, inputs]
    importance: Array  # [tokens, 1]
    is_first: npt.NDArray[np.bool_]  # [tokens]: begins a text

    def mean(self) -> Array:
        """[inputs]: the mean of all rows but the first of each text, which are unlike any others."""
        importance = self.importance * ~self.is_first[:, None]
        mean: Array = (self.rows * importance).sum(axis=0) / importance.sum()
        return mean

    def weighted(self, shift: Array | float = 0.0) -> Array:
        """`rows - shift`, scaled so that the Gram matrix of the result weighs each row's error by its importance."""
        importance = self.importance * np.where(self.is_first, np.float32(FIRST_TOKEN_WEIGHT), np.float32(1))[:, None]
        weighted: Array = (self.rows - np.float32(shift)) * np.sqrt(importance)
        return weighted


@dataclass(frozen=True, slots=True, eq=False)
class Centered:
    """What rows hold on a calibration text, about their mean; nothing without calibration.

    The mean is subtracted before rows are quantised, and its product is a bias: half of what a norm leaves is the same
    in every row, and need not be quantised again and again.
    """

    shift: Array | None = None  # [inputs]
    rows: Array | None = None  # [tokens, inputs], shifted and weighted

    @classmethod
    def of(cls, inputs: Inputs) -> Centered:
        shift = inputs.mean()
        return cls(shift, inputs.weighted(shift))

    def bias(self, weight: Array, bias: Array | None) -> Array | None:
        """`bias` of a layer whose rows are shifted."""
        if self.shift is None:
            return bias
        product = kernels().dot(weight, self.shift)
        return product if bias is None else product + bias


class Calibration:
    """The inputs of every linear layer of a decoder, in the order of the layers."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Array], texts: Sequence[TokenIds]) -> None:
        self._spec, self._ops = spec, CalibrationOps(spec, weights, texts)
        self._residual = self._ops.embed("embed")
        self._normed = self._ops.rms_norm(self._residual, "layers.0.attention_norm")
        self._next_layer = 0

    def inputs(self, name: str) -> Inputs:
        """Of the linear layer `name`, or of the head; layers must be asked for in their order."""
        while name not in self._ops.inputs:
            self._advance(name)
        return self._ops.inputs[name]

    def _advance(self, name: str) -> None:
        with np.errstate(all="ignore"):  # what leaves the range of float32 is told in a sentence
            self._advance_quietly(name)

    def _advance_quietly(self, name: str) -> None:
        is_over = self._next_layer == self._spec.num_layers
        assert not (is_over and name.startswith("layers.")), f"{name} is not ahead"
        self._ops.inputs.clear()
        if is_over:
            self._ops.logits(self._normed, name)
        else:
            layer, state = self._next_layer, (self._residual, self._normed)
            self._residual, self._normed = build_layer(self._spec, self._ops, layer, *state)
            self._next_layer += 1


class CalibrationOps:
    """`Ops` over float32 arrays: the rows of several texts, one after the other, each from its first token."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Array], texts: Sequence[TokenIds]) -> None:
        self.inputs: dict[str, Inputs] = {}
        self._spec, self._weights, self._texts = spec, weights, texts
        self._ends = np.cumsum([len(text) for text in texts])[:-1]
        self._is_first = np.concatenate([np.arange(len(text)) == 0 for text in texts])
        tables = spec.rope.sines_and_cosines(max(len(text) for text in texts))
        self._rope_tables = [table.astype(np.float32) for table in tables]
        self._writer: tuple[str, Array] | None = None  # the last layer that may write to the residual stream

    def embed(self, weight: str) -> Array:
        rows: Array = self._weights[weight][np.concatenate(self._texts)]
        return rows

    def rms_norm(self, x: Array, weight: str) -> Array:
        return self._norm(x, self._weights[weight])

    def add_rms_norm(self, x: Array, delta: Array, weight: str) -> tuple[Array, Array]:
        total = x + delta
        if self._writer and not self._spec.sandwich_norm:
            name, rows = self._writer  # what follows sees the stream divided by its size
            self._record(name, rows, 1 / np.mean(total * total, axis=1, keepdims=True))
        return total, self.rms_norm(total, weight)

    def linear(self, x: Array, *layers: str) -> Array:
        self._record(layers[0], x, np.ones((len(x), 1), np.float32))
        self._writer = layers[0], x
        parts = [self._product(x, name) for name in layers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def attention(self, qkv: Array, layer: int, query_norm: str | None, key_norm: str | None) -> Array:
        spec = self._spec
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_size
        query, key, value = (part.reshape(len(qkv), -1, spec.head_size) for part in np.split(qkv, sizes, axis=1))
        if query_norm and key_norm:
            query, key = self._norm(query, self._weights[query_norm]), self._norm(key, self._weights[key_norm])
        texts = zip(*(np.split(part, self._ends) for part in (query, key, value)), strict=True)
        return np.concatenate([self._attend(*parts) for parts in texts])

    def swiglu(self, gate: Array, up: Array) -> Array:
        return kernels().swiglu(gate, up)

    def add_features(self, x: Array, part: int) -> Array:
        return x

    def select_rows(self, x: Array) -> Array:
        return x

    def logits(self, x: Array, weight: str) -> None:
        self._record(weight, x, np.ones((len(x), 1), np.float32))

    def _product(self, x: Array, name: str) -> Array:
        product = kernels().products(x, self._weights[f"{name}.weight"])
        return product + self._weights[f"{name}.bias"] if f"{name}.bias" in self._weights else product

    def _record(self, name: str, rows: Array, importance: Array) -> None:
        prepared(f"what {name} reads of the calibration text", rows)
        self.inputs[name] = Inputs(rows, importance, self._is_first)

    def _norm(self, x: Array, weight: Array) -> Array:
        normed: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self._spec.norm_eps)) * weight
        return normed

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        """One text, head by head: `[tokens, heads, head_size]` -> `[tokens, num_heads * head_size]`."""
        group = self._spec.num_heads // self._spec.num_kv_heads
        query, key = self._rotate(query) / np.sqrt(np.float32(self._spec.head_size)), self._rotate(key)
        future = np.triu(np.full((len(query), len(query)), -np.inf, np.float32), 1)
        heads = range(self._spec.num_heads)
        scores = np.stack([kernels().products(query[:, head], key[:, head // group]) for head in heads]) + future
        shares = kernels().exp(scores - scores.max(axis=2, keepdims=True))
        sums = [kernels().products(shares[head], value[:, head // group].T) for head in heads]
        return np.concatenate(sums / shares.sum(axis=2, keepdims=True), axis=1)

    def _rotate(self, x: Array) -> Array:
        rope = self._spec.rope
        sin, cos = (table[: len(x), None] for table in self._rope_tables)
        half, step = (1, 2) if rope.interleaved else (rope.dims // 2, 1)
        first = slice(0, rope.dims if rope.interleaved else half, step)
        second = slice(half, rope.dims, step)
        turned = x.copy()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
        return turned
