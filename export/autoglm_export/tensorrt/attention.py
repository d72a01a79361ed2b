"""Attention over the first positions of a cache, in three forms that compute the same.

    fused        an attention layer; TensorRT must have one kernel for its shapes and types
    decomposed   the same layer, which TensorRT may take apart: slower, and it needs room for all scores
    plain        products, a mask and a softmax of our own, in float32: the last resort, and no layer to trust

In each a token sees the positions 0 ... its own by a mask that the network makes, once for all layers. The layer's own
way of bounding a row (`key_value_lengths` with a lower-right mask) is not used: NVIDIA took it out of
TensorRT-Model-Connect (pull requests 1035 and 1048), since it "can build successfully while returning incorrect tokens"
at larger caches.

float16 is widened around the layer: only then do the products of a float16 kernel accumulate in float32 (release notes
of TensorRT 11.3, "FP32 accumulation for FP16 fused attention").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autoglm_export.model.spec import ModelSpec

from .network import Network, Tensor

FORMS = ("fused", "decomposed", "plain")  # in the order that a build tries them
_HIDDEN = -1e30  # the score of a position that is not seen


class Attention:
    """`position_ids` int32 `[B, S]`, `key_positions` int32 `[K]`; `dtype`: of the caches."""

    def __init__(
        self,
        network: Network,
        spec: ModelSpec,
        form: str,
        position_ids: Tensor,
        key_positions: Tensor,
        dtype: npt.DTypeLike,
    ) -> None:
        assert form in FORMS, f"attention has no form {form!r}"
        self._network, self._spec, self._form, self._dtype = network, spec, form, np.dtype(dtype)
        self._sizes = self._read_sizes(position_ids, key_positions)
        repeats = spec.num_heads // spec.num_kv_heads if form == "plain" else 1
        self._mask = self._visible(position_ids, key_positions, repeats)

    def attended(self, name: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`query` float32 `[B, heads, S, head_size]`, scaled already; `keys` and `values`: whole caches
        `[B, kv heads, cache_length, head_size]`. Gives `[B, heads, S, head_size]` in a type of its own."""
        read_keys, read_values = self._read(keys), self._read(values)
        if self._form == "plain":
            return self._plain(name, query, read_keys, read_values)
        rows = (self._network.cast(query, self._dtype), read_keys, read_values)
        result = self._network.attention(
            name, *map(self._widened, rows), mask=self._mask, decomposable=self._form == "decomposed"
        )
        return self._network.cast(result, self._dtype)

    def _widened(self, x: Tensor) -> Tensor:
        return self._network.cast(x, np.float32) if self._dtype == np.float16 else x

    def _plain(self, name: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The queries that share a key head are rows of one product."""
        network, spec = self._network, self._spec
        rows = network.reshape(query, 0, spec.num_kv_heads, -1, spec.head_size)
        scores = network.matmul(f"{name}.scores", rows, network.cast(keys, np.float32), transposed=True)
        hidden = network.constant("hidden", np.full((1, 1, 1, 1), _HIDDEN, np.float32))
        weights = network.softmax(network.select(self._mask, scores, hidden), axis=3)
        result = network.matmul(name, weights, network.cast(values, np.float32), transposed=False)
        return network.reshape(result, 0, spec.num_heads, -1, spec.head_size)

    def _visible(self, position_ids: Tensor, key_positions: Tensor, repeats: int) -> Tensor:
        """bool `[B, 1, S, K]`, or `[B, 1, repeats * S, K]`: whether a token sees a position."""
        network = self._network
        queries = network.reshape(position_ids, 0, 1, -1)
        if repeats > 1:
            zeros = network.constant("repeated_rows", np.zeros((1, repeats, 1), np.int32))
            queries = network.binary("SUM", queries, zeros)
        later = network.binary(
            "GREATER", network.reshape(key_positions, 1, 1, 1, -1), network.reshape(queries, 0, 1, -1, 1)
        )
        return network.unary("NOT", later)

    def _read_sizes(self, position_ids: Tensor, key_positions: Tensor) -> Tensor:
        """int64 `[4]`: B, kv heads, K, head_size."""
        network, spec = self._network, self._spec
        batch = network.slice(network.shape(position_ids), (0,), (1,))
        heads, size = (
            network.constant(f"size_{n}", np.array([n], np.int64)) for n in (spec.num_kv_heads, spec.head_size)
        )
        return network.concatenation([batch, heads, network.shape(key_positions), size])

    def _read(self, cache: Tensor) -> Tensor:
        """The first K positions of each row."""
        return self._network.slice(cache, (0, 0, 0, 0), self._sizes)
