"""The vision tower as an ONNX graph for ONNX Runtime's CPU kernels: one image a run, of any size.

Inputs, for an image of `rows` x `columns` patches (`autoglm_engine.vision.geometry` computes all but the first):
    patches         float32 [rows * columns, 3 * patch_size^2]
    row_weights     float32 [rows, position_table_size]      of the learned positions
    column_weights  float32 [columns, position_table_size]
    order           int64   [rows * columns]                 of each patch its index row by row
    rope_cos, rope_sin  float32 [rows * columns, head_size / 2]
Output: features float32 [number of tokens, feature_size].

Attention has no mask, so that ONNX Runtime computes it tile by tile: the scores of all pairs are never in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoglm_export.checkpoint.vision_weights import stored_shapes
from autoglm_export.checkpoint.weights import Array, CountedWeights
from autoglm_export.errors import InvalidOption
from autoglm_export.model.vision import build_tower
from autoglm_export.model.vision_spec import VisionSpec
from autoglm_export.runtimes import Progress, no_progress

from .graph import CONTRIB, OnnxGraph
from .linear import FloatLinears, Linears, Rows, finished

MODEL_FILE = "vision.onnx"
_STAGE = "write vision tower"
PRECISIONS = ("fp32",)


class OnnxVisionOps:
    """`VisionOps` over values of an ONNX graph."""

    def __init__(self, graph: OnnxGraph, spec: VisionSpec, weights: Mapping[str, Array], linears: Linears) -> None:
        self._graph, self._spec, self._weights, self._linears = graph, spec, weights, linears
        table = spec.position_table_size
        graph.input("patches", np.float32, ["patches", spec.patch_width])
        graph.input("row_weights", np.float32, ["rows", table])
        graph.input("column_weights", np.float32, ["columns", table])
        graph.input("order", np.int64, ["patches"])
        for name in ("rope_cos", "rope_sin"):
            graph.input(name, np.float32, ["patches", spec.head_size // 2])
        self._first_place = graph.tensor("first_place", np.zeros(1, np.int64))  # each patch has its row of the tables

    def patches(self) -> Rows:
        return Rows("patches")

    def positions(self, table: str) -> Rows:
        """Interpolated along rows, then along columns, then put into the order of the patches."""
        graph, size, width = self._graph, self._spec.position_table_size, self._spec.hidden_size
        flat = graph.tensor(table, self._weights[table].reshape(size, size * width))
        along_rows = graph.op("Reshape", graph.op("MatMul", "row_weights", flat), self._shape(-1, size, width))
        grid = graph.op("MatMul", "column_weights", along_rows)
        return Rows(graph.op("Gather", graph.op("Reshape", grid, self._shape(-1, width)), "order"))

    def rms_norm(self, x: Rows, weight: str) -> Rows:
        inputs = finished(self._graph, x), self._tensor(weight)
        return Rows(
            self._graph.op("SimplifiedLayerNormalization", *inputs, axis=-1, epsilon=self._spec.norm_eps, stash_type=1)
        )

    def add_rms_norm(self, x: Rows, delta: Rows, weight: str) -> tuple[Rows, Rows]:
        inputs = [finished(self._graph, x), finished(self._graph, delta), self._tensor(weight)]
        op = "SkipSimplifiedLayerNormalization"
        normed, _, _, total = self._graph.node(op, inputs, domain=CONTRIB, num_outputs=4, epsilon=self._spec.norm_eps)
        return Rows(total), Rows(normed)

    def layer_norm(self, x: Rows, name: str) -> Rows:
        inputs = finished(self._graph, x), self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")
        return Rows(self._graph.op("LayerNormalization", *inputs, axis=-1, epsilon=self._spec.merger_norm_eps))

    def add_layer_norm(self, x: Rows, delta: Rows, name: str) -> tuple[Rows, Rows]:
        rows = [finished(self._graph, x), finished(self._graph, delta)]
        inputs = [*rows, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")]
        op = "SkipLayerNormalization"
        normed, _, _, total = self._graph.node(op, inputs, domain=CONTRIB, num_outputs=4, epsilon=self._spec.norm_eps)
        return Rows(total), Rows(normed)

    def linear(self, x: Rows, layer: str) -> Rows:
        return self._linears.linear(x, (layer,))

    def attention(self, query: Rows, key: Rows, value: Rows) -> Rows:
        turned = [self._turned(finished(self._graph, x)) for x in (query, key)]
        inputs = *turned, self._batch_first(finished(self._graph, value))
        attended = self._graph.op("MultiHeadAttention", *inputs, domain=CONTRIB, num_heads=self._spec.num_heads)
        return Rows(self._graph.op("Reshape", attended, self._shape(-1, self._spec.hidden_size)))

    def swiglu(self, gate: Rows, up: Rows) -> Rows:
        silu = self._graph.op("QuickGelu", finished(self._graph, gate), domain=CONTRIB, alpha=1.0)
        # What multiplies `up` by row may wait until after the next product: everything between is linear in it.
        plain = finished(self._graph, dataclasses.replace(up, factor=None))
        return Rows(self._graph.op("Mul", silu, plain), up.factor, spiky=True)

    def gelu(self, x: Rows) -> Rows:
        return Rows(self._graph.op("Gelu", finished(self._graph, x)))

    def gelu_tanh(self, x: Rows) -> Rows:
        return Rows(self._graph.op("Gelu", finished(self._graph, x), approximate="tanh"))

    def join(self, x: Rows) -> Rows:
        return Rows(self._graph.op("Reshape", finished(self._graph, x), self._shape(-1, self._spec.joined_size)))

    def features(self, *parts: Rows) -> None:
        self._graph.output("features", np.float32, ["tokens", self._spec.feature_size])
        self._graph.named("Concat", [finished(self._graph, part) for part in parts], ["features"], axis=1)

    def _turned(self, x: str) -> str:
        inputs = self._batch_first(x), self._first_place, "rope_cos", "rope_sin"
        return self._graph.op("RotaryEmbedding", *inputs, domain=CONTRIB, num_heads=self._spec.num_heads)

    def _batch_first(self, x: str) -> str:
        return self._graph.op("Unsqueeze", x, self._shape(0))

    def _tensor(self, name: str) -> str:
        return self._graph.tensor(name, self._weights[name])

    def _shape(self, *sizes: int) -> str:
        return self._graph.tensor(f"shape_{sizes}", np.array(sizes, np.int64))


def write_vision(
    spec: VisionSpec,
    weights: Mapping[str, Array],
    folder: Path,
    *,
    precision: str,
    progress: Progress = no_progress,
) -> str:
    """Write the graph and its weights into `folder`; returns the name of the model's file. Raises InvalidOption for an
    unknown precision."""
    if precision not in PRECISIONS:
        raise InvalidOption(f"the precision {precision!r} is not known; allowed are {', '.join(PRECISIONS)}")
    read = CountedWeights(stored_shapes(spec), weights, progress, _STAGE)
    with OnnxGraph(folder, MODEL_FILE, "vision tower") as graph:
        build_tower(spec, OnnxVisionOps(graph, spec, read, FloatLinears(graph, read)))
        graph.save()
    progress(_STAGE, 1.0)
    return MODEL_FILE
