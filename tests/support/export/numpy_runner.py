"""The decoder in plain numpy, float32, one span at a time: slow, obvious, and a `Runner` for tests that need a real
one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Logits, Span, StepBatch
from autoglm_engine.runners.base import Deferred, Limits
from autoglm_engine.runners.image_inputs import positions_of
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.spec import ModelSpec

Rows = npt.NDArray[np.float32]


@dataclass
class NumpyOps:
    """`Ops` over arrays, for one span whose caches are `keys` and `values`, each [layers, max_length, kv_heads,
    size]."""

    spec: ModelSpec
    weights: Mapping[str, Rows]
    span: Span
    keys: Rows
    values: Rows
    result: Rows | None = None

    def embed(self, weight: str) -> Rows:
        rows = self.weights[weight][np.maximum(self.span.token_ids, 0)]
        if self.span.features is not None:
            rows[self.span.token_ids < 0] = self._part(0)
        return rows

    def add_features(self, x: Rows, part: int) -> Rows:
        rows = x.copy()
        if self.span.features is not None:
            rows[self.span.token_ids < 0] += self._part(part)
        return rows

    def _part(self, part: int) -> Rows:
        assert self.span.features is not None
        return np.split(self.span.features, 1 + self.spec.num_deepstack, axis=1)[part]

    def rms_norm(self, x: Rows, weight: str) -> Rows:
        return self._norm(x, self.weights[weight])

    def _norm(self, x: Rows, weight: Rows) -> Rows:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.spec.norm_eps)) * weight

    def add_rms_norm(self, x: Rows, delta: Rows, weight: str) -> tuple[Rows, Rows]:
        return x + delta, self.rms_norm(x + delta, weight)

    def linear(self, x: Rows, *layers: str) -> Rows:
        parts = [x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0) for name in layers]
        return np.concatenate(parts, axis=1)

    def attention(self, qkv: Rows, layer: int, query_norm: str | None, key_norm: str | None) -> Rows:
        spec, start, count = self.spec, self.span.start, len(qkv)
        sizes = np.cumsum([spec.num_heads, spec.num_kv_heads]) * spec.head_size
        query, key, value = (part.reshape(count, -1, spec.head_size) for part in np.split(qkv, sizes, axis=1))
        if query_norm and key_norm:
            query, key = self._norm(query, self.weights[query_norm]), self._norm(key, self.weights[key_norm])
        self.keys[layer, start : start + count] = self._rotate(key)
        self.values[layer, start : start + count] = value
        group = spec.num_heads // spec.num_kv_heads
        keys = np.repeat(self.keys[layer, : start + count], group, axis=1)
        values = np.repeat(self.values[layer, : start + count], group, axis=1)
        scores = np.einsum("qhd,khd->hqk", self._rotate(query), keys) / np.sqrt(np.float32(spec.head_size))
        future = np.arange(start + count)[None, :] > np.arange(start, start + count)[:, None]
        scores = np.where(future, -np.inf, scores)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", shares, values).reshape(count, -1).astype(np.float32)

    def _rotate(self, x: Rows) -> Rows:
        rope, half = self.spec.rope, self.spec.rope.dims // 2
        axis_of_pair = list(rope.axes or (0,) * half)
        angles = (positions_of([self.span])[axis_of_pair].T * rope.inverse_frequencies())[:, None, :]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = (
            (slice(0, rope.dims, 2), slice(1, rope.dims, 2))
            if rope.interleaved
            else (slice(half), slice(half, 2 * half))
        )
        turned = x.copy()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
        return turned

    def swiglu(self, gate: Rows, up: Rows) -> Rows:
        return gate / (1 + np.exp(-gate)) * up

    def select_rows(self, x: Rows) -> Rows:
        return x[-1:]

    def logits(self, x: Rows, weight: str) -> None:
        self.result = x @ self.weights[weight].T


def half(x: Rows) -> Rows:
    return x.astype(np.float16).astype(np.float32)


class HalfOps(NumpyOps):
    """Every weight, cache and product rounded to float16; the residual stream, norms and gating in float32."""

    def embed(self, weight: str) -> Rows:
        return half(super().embed(weight))

    def linear(self, x: Rows, *layers: str) -> Rows:
        parts = [half(x) @ half(self.weights[f"{name}.weight"]).T for name in layers]
        biases = [half(np.asarray(self.weights.get(f"{name}.bias", np.zeros(1)))) for name in layers]
        return half(np.concatenate([part + bias for part, bias in zip(parts, biases, strict=True)], axis=1))

    def attention(self, qkv: Rows, layer: int, query_norm: str | None, key_norm: str | None) -> Rows:
        return half(super().attention(qkv, layer, query_norm, key_norm))

    def _rotate(self, x: Rows) -> Rows:
        return half(super()._rotate(half(x)))

    def logits(self, x: Rows, weight: str) -> None:
        self.result = half(half(x) @ half(self.weights[weight]).T)


class NumpyRunner:
    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Rows], *, ops: type[NumpyOps] = NumpyOps, **limits: Any
    ) -> None:
        self.spec, self.weights, self.ops = spec, dict(weights), ops
        defaults: dict[str, Any] = {"num_slots": 2, "max_length": 128, "prefill_chunk": 32}
        self.limits = Limits(**{**defaults, **limits}, vocab_size=spec.vocab_size)
        shape = (self.limits.num_slots, spec.num_layers, self.limits.max_length, spec.num_kv_heads, spec.head_size)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self.forward, batch)

    def forward(self, batch: StepBatch) -> Logits:
        rows = [self._span(span) for span in batch.spans]
        wanted = [row for row, span in zip(rows, batch.spans, strict=True) if span.wants_logits]
        return np.concatenate(wanted) if wanted else np.empty((0, self.spec.vocab_size), np.float32)

    def _span(self, span: Span) -> Rows:
        ops = self.ops(self.spec, self.weights, span, self._keys[span.slot], self._values[span.slot])
        build_decoder(self.spec, ops)
        assert ops.result is not None, "the decoder ended without logits"
        return ops.result

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self._keys[target, :, :length] = self._keys[source, :, :length]
        self._values[target, :, :length] = self._values[source, :, :length]

    def close(self) -> None:
        pass
