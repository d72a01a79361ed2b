"""`Ops` over the tensors of a TensorRT network. Activations are float32 `[B, S, width]`: B sequences, S tokens of each.

Only matrix products, the cache and attention work in 16 bits or fewer; the residual stream, norms, rope and gating
stay in float32, where they cost nothing beside the weights that a step reads, and where no activation overflows.
The embedding table and the head are in float16: logits of that type are 8 times finer than in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.rounding import held

from .attention import Attention
from .images import ImageInputs
from .linear import Linears
from .network import Network, Tensor
from .norms import rms_norm

TABLE_TYPE = np.float16  # of embedding and head
_BATCH, _SEQUENCE, _HEADS, _SIZE = range(4)  # axes of [B, S, heads, head_size]


class TensorRTOps:
    """`attention`: one of `attention.FORMS`. `feature_rows`: of a decoder that takes images."""

    def __init__(
        self,
        network: Network,
        spec: ModelSpec,
        weights: Mapping[str, Array],
        linears: Linears,
        *,
        cache_dtype: npt.DTypeLike,
        cache_length: int,
        attention: str,
        feature_rows: int,
    ) -> None:
        self._network, self._spec, self._weights, self._linears = network, spec, weights, linears
        self._cache_dtype, self._cache_length = cache_dtype, cache_length
        self._token_ids = network.input("token_ids", np.int32, [-1, -1])
        self._position_ids = network.input("position_ids", np.int32, [-1, -1])
        self._write_indices = network.input("write_indices", np.int32, [-1])
        key_positions = network.input("key_positions", np.int32, [-1])
        self._logit_indices = network.input("logit_indices", np.int32, [-1, 1])
        self._batch_and_sequence = network.shape(self._token_ids)
        self._attention = Attention(network, spec, attention, self._position_ids, key_positions, cache_dtype)
        self._images = ImageInputs(network, spec, self._token_ids, feature_rows) if spec.takes_images else None
        self._turns = self._tables()
        self.result: Tensor | None = None  # float32 [B, vocab_size], once `logits` was called

    def embed(self, weight: str) -> Tensor:
        images, table = self._images, self._table(weight)
        ids = self._token_ids if images is None else images.embedded_ids()
        rows = self._network.cast(self._network.gather(weight, table, ids, axis=0), np.float32)
        return rows if images is None else images.with_features(rows)

    def rms_norm(self, x: Tensor, weight: str) -> Tensor:
        return rms_norm(self._network, x, weight, self._weights[weight], self._spec.norm_eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: str) -> tuple[Tensor, Tensor]:
        total = self._network.binary("SUM", x, delta)
        return total, self.rms_norm(total, weight)

    def linear(self, x: Tensor, *layers: str) -> Tensor:
        product = self._linears.linear(x, layers)
        if f"{layers[0]}.bias" not in self._weights:
            return product
        bias = np.concatenate([self._weights[f"{name}.bias"] for name in layers])
        return self._network.binary("SUM", product, self._network.constant(f"{layers[0]}.bias", bias[None, None]))

    def attention(self, qkv: Tensor, layer: int, query_norm: str | None, key_norm: str | None) -> Tensor:
        spec, network = self._spec, self._network
        heads = network.reshape(qkv, 0, 0, spec.num_heads + 2 * spec.num_kv_heads, spec.head_size)
        query = self._turned(self._normed(self._heads(heads, 0, spec.num_heads), query_norm))
        key = self._turned(self._normed(self._heads(heads, spec.num_heads, spec.num_kv_heads), key_norm))
        value = self._heads(heads, spec.num_heads + spec.num_kv_heads, spec.num_kv_heads)
        scale = network.constant("attention_scale", np.full((1, 1, 1, 1), spec.head_size**-0.5, np.float32))
        keys = self._cached(f"key_{layer}", key)
        values = self._cached(f"value_{layer}", network.transpose(value, _BATCH, _HEADS, _SEQUENCE, _SIZE))
        scaled = network.binary("PROD", query, scale)
        attended = self._attention.attended(f"layers.{layer}.attention", scaled, keys, values)
        rows = network.transpose(attended, _BATCH, _HEADS, _SEQUENCE, _SIZE)  # the two axes change places again
        return network.cast(network.reshape(rows, 0, 0, spec.num_heads * spec.head_size), np.float32)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        silu = self._network.binary("PROD", gate, self._network.sigmoid(gate))
        return self._network.binary("PROD", silu, up)

    def add_features(self, x: Tensor, part: int) -> Tensor:
        assert self._images is not None, "features of a decoder that takes no images"
        return self._images.with_more_features(x, part)

    def select_rows(self, x: Tensor) -> Tensor:
        """[B, S, width] -> [B, 1, width]: the token whose logits are wanted."""
        indices = self._network.reshape(self._logit_indices, 0, 1, 1)
        layer = self._network.definition.add_gather_v2(x, indices, self._network.trt.GatherMode.ND)
        layer.num_elementwise_dims = 1
        return layer.get_output(0)

    def logits(self, x: Tensor, weight: str) -> None:
        network = self._network
        table = network.reshape(self._table(weight), 1, self._spec.vocab_size, self._spec.hidden_size)
        product = network.matmul("logits", network.cast(x, TABLE_TYPE), table, transposed=True)
        self.result = network.reshape(network.cast(product, np.float32), 0, self._spec.vocab_size)

    def _table(self, weight: str) -> Tensor:
        return self._network.constant(weight, held(weight, self._weights[weight], TABLE_TYPE))

    def _tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin, [cache_length, rope dims / 2] each; with images, of each token: [B, S, rope dims / 2]."""
        sin, cos = (table.astype(np.float32) for table in self._spec.rope.sines_and_cosines(self._cache_length))
        made = self._network.constant if self._images is None else self._images.turns
        return made("rope_cos", cos), made("rope_sin", sin)

    def _heads(self, heads: Tensor, first: int, count: int) -> Tensor:
        """[B, S, all heads, head_size] -> [B, S, count, head_size]"""
        network = self._network
        rest = network.constant(f"heads_{count}", np.array([count, self._spec.head_size], np.int64))
        return network.slice(heads, (0, 0, first, 0), network.concatenation([self._batch_and_sequence, rest]))

    def _normed(self, heads: Tensor, weight: str | None) -> Tensor:
        return heads if weight is None else self.rms_norm(heads, weight)

    def _turned(self, heads: Tensor) -> Tensor:
        """[B, S, count, head_size] -> [B, count, S, head_size], each head turned by its token's position."""
        rope, cos, sin = self._spec.rope, *self._turns
        ordered = self._network.transpose(heads, _BATCH, _HEADS, _SEQUENCE, _SIZE)
        layer = self._network.definition.add_rotary_embedding(ordered, cos, sin, rope.interleaved, rope.dims)
        if self._images is None:
            layer.set_input(3, self._position_ids)
        return layer.get_output(0)

    def _cached(self, name: str, new: Tensor) -> Tensor:
        """The cache with `new` [B, kv heads, S, head_size] written into it, in place."""
        network, spec = self._network, self._spec
        shape = [-1, spec.num_kv_heads, self._cache_length, spec.head_size]
        past = network.input(f"past_{name}", self._cache_dtype, shape)
        update = network.cast(new, self._cache_dtype)
        mode = network.trt.KVCacheMode.LINEAR
        layer = network.definition.add_kv_cache_update(past, update, self._write_indices, mode)
        network.output(f"present_{name}", layer.get_output(0))
        return layer.get_output(0)
