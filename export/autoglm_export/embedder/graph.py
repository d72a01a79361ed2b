"""A BERT encoder with mean pooling and L2 normalisation as an ONNX graph.

Inputs: token_ids int64 [batch, length]; mask float32 [batch, length], 1 for a token and 0 for padding.
Output: embedding float32 [batch, hidden_size], of length 1.

Source: the published `transformers` BertModel (post-norm; gelu by erf) and sentence-transformers' Pooling and
Normalize.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_export.checkpoint.safetensors import SafetensorsStore
from autoglm_export.checkpoint.weights import Array
from autoglm_export.errors import TensorError, UnsupportedModel
from autoglm_export.onnx.graph import OnnxGraph

_MASKED = -1e9  # added to scores: exp of it is exactly 0
_MIN_NORM = 1e-12


@dataclass(frozen=True, slots=True)
class EncoderShape:
    hidden_size: int
    num_layers: int
    num_heads: int
    norm_epsilon: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EncoderShape:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        if hidden % heads:
            raise UnsupportedModel(f"the embedder's hidden_size {hidden} is no multiple of its {heads} heads")
        return cls(hidden, int(config["num_hidden_layers"]), heads, float(config["layer_norm_eps"]))

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


def write_encoder(folder: Path, store: SafetensorsStore, shape: EncoderShape) -> None:
    """Raises TensorError where a tensor is missing."""
    with OnnxGraph(folder) as graph:
        Encoder(graph, store, shape).build()
        graph.save()


class Encoder:
    def __init__(self, graph: OnnxGraph, store: SafetensorsStore, shape: EncoderShape) -> None:
        self._graph = graph
        self._store = store
        self._shape = shape
        names = set(store.names())
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in names else ""

    def build(self) -> None:
        graph = self._graph
        ids = graph.input("token_ids", np.int64, ["batch", "length"])
        mask = graph.input("mask", np.float32, ["batch", "length"])
        hidden = self._embed(ids)
        bias = self._attention_bias(mask)
        for layer in range(self._shape.num_layers):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, bias)
        graph.named("Mul", [*self._pooled(hidden, mask)], [graph.output("embedding", np.float32, ["batch", "size"])])

    def _embed(self, ids: str) -> str:
        graph, name = self._graph, "embeddings"
        words = graph.op("Gather", graph.tensor("words", self._read(f"{name}.word_embeddings.weight")), ids)
        # Every token is of the first sentence.
        kind = self._read(f"{name}.token_type_embeddings.weight")[0]
        positions = graph.tensor("positions", self._read(f"{name}.position_embeddings.weight") + kind)
        length = graph.op("Shape", ids, start=1, end=2)
        own = graph.op("Slice", positions, self._ints("zero", 0), length, self._ints("rows", 0))
        return self._norm(f"{name}.LayerNorm", graph.op("Add", words, own))

    def _attention_bias(self, mask: str) -> str:
        """float32 [batch, 1, 1, length]."""
        graph = self._graph
        absent = graph.op("Sub", mask, graph.tensor("one", np.array(1, np.float32)))
        bias = graph.op("Mul", absent, graph.tensor("masked", np.array(-_MASKED, np.float32)))
        return graph.op("Unsqueeze", bias, self._ints("heads_and_queries", 1, 2))

    def _layer(self, name: str, hidden: str, bias: str) -> str:
        graph = self._graph
        attended = self._linear(
            f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", hidden, bias)
        )
        hidden = self._norm(f"{name}.attention.output.LayerNorm", graph.op("Add", hidden, attended))
        inner = graph.op("Gelu", self._linear(f"{name}.intermediate.dense", hidden))
        return self._norm(
            f"{name}.output.LayerNorm", graph.op("Add", hidden, self._linear(f"{name}.output.dense", inner))
        )

    def _attention(self, name: str, hidden: str, bias: str) -> str:
        graph = self._graph
        query, key, value = (self._heads(self._linear(f"{name}.{part}", hidden)) for part in ("query", "key", "value"))
        scale = graph.tensor("scale", np.array(1 / math.sqrt(self._shape.head_size), np.float32))
        scores = graph.op("MatMul", graph.op("Mul", query, scale), graph.op("Transpose", key, perm=[0, 1, 3, 2]))
        weights = graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
        joined = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return graph.op("Reshape", joined, self._ints("whole", 0, 0, self._shape.hidden_size))

    def _heads(self, value: str) -> str:
        shape = self._ints("heads", 0, 0, self._shape.num_heads, self._shape.head_size)
        return self._graph.op("Transpose", self._graph.op("Reshape", value, shape), perm=[0, 2, 1, 3])

    def _linear(self, name: str, value: str) -> str:
        graph = self._graph
        weight = graph.tensor(f"{name}.weight", self._read(f"{name}.weight").T)
        return graph.op(
            "Add", graph.op("MatMul", value, weight), graph.tensor(f"{name}.bias", self._read(f"{name}.bias"))
        )

    def _norm(self, name: str, value: str) -> str:
        weights = [self._graph.tensor(f"{name}.{part}", self._read(f"{name}.{part}")) for part in ("weight", "bias")]
        return self._graph.op("LayerNormalization", value, *weights, axis=-1, epsilon=self._shape.norm_epsilon)

    def _pooled(self, hidden: str, mask: str) -> tuple[str, str]:
        """(sum over tokens, what makes its length 1): the mean points the same way."""
        graph = self._graph
        last = self._ints("last", -1)
        present = graph.op("Mul", hidden, graph.op("Unsqueeze", mask, last))
        total = graph.op("ReduceSum", present, self._ints("tokens", 1), keepdims=0)
        norm = graph.op("ReduceL2", total, last, keepdims=1)
        floor = graph.tensor("least", np.array(_MIN_NORM, np.float32))
        return total, graph.op("Reciprocal", graph.op("Max", norm, floor))

    def _ints(self, name: str, *values: int) -> str:
        return self._graph.tensor(f"ints.{name}", np.array(values, np.int64))

    def _read(self, name: str) -> Array:
        full = f"{self._prefix}{name}"
        if full not in self._store.names():
            raise TensorError(f"the embedder's tensor {full} is missing")
        return self._store.read(full, slice(None))
