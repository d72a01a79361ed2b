"""Linear layers and the embedding table as ONNX Runtime computes them, in fp32 and int8 on a CPU, in fp16 on a GPU.

An activation is a `Rows`: a graph value, its type, and perhaps a factor a row that is still to be multiplied in.

fp16: weights and products are float16; who computes anything else with a product takes it as float32 (`finished`).

int8: weights are symmetric, one scale a column; activations are quantised **row by row**, so that a token's result
never depends on the other tokens of its step. ONNX Runtime's quantised products know one activation scale a tensor; so
each row is divided by its largest magnitude, quantised with the constant scale 1/127, and multiplied by that magnitude
afterwards. Rows with a few values far larger than the rest (`spiky`) are first mixed by a Hadamard matrix, and so are
the weights. A row of zeros divides to NaN, quantises to some integers, and is multiplied by 0: its result is 0, as it
should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autoglm_export.checkpoint.weights import Array
from autoglm_export.quantize.calibration import Calibration
from autoglm_export.quantize.rotation import hadamard, mix_blocks, mixing_block
from autoglm_export.quantize.rounding import held, round_columns

from .graph import CONTRIB, OnnxGraph

_LEVELS = 127.0
FLOAT = np.dtype(np.float32)
HALF = np.dtype(np.float16)

DType = np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """`value` [num_rows, width], to be multiplied by `factor` [num_rows, 1] where there is one."""

    value: str
    factor: str | None = None
    spiky: bool = False  # a few of the values are far larger than the rest
    dtype: DType = FLOAT


class Linears(Protocol):
    def embed(self, weight: str, ids: str) -> Rows: ...

    def linear(self, x: Rows, layers: Sequence[str]) -> Rows: ...

    def logits(self, x: Rows, weight: str, output: str) -> None: ...


def finished(graph: OnnxGraph, x: Rows, dtype: DType = FLOAT) -> str:
    """The graph value of `x` with its factor multiplied in, as `dtype`."""
    value = x.value if x.factor is None else graph.op("Mul", x.value, x.factor)
    return value if x.dtype == dtype else graph.cast(value, dtype)


class FloatLinears:
    """Weights and products in `dtype`, as the checkpoint has them or rounded."""

    def __init__(self, graph: OnnxGraph, weights: Mapping[str, Array], dtype: DType = FLOAT) -> None:
        self._graph, self._weights, self._dtype = graph, weights, dtype

    def embed(self, weight: str, ids: str) -> Rows:
        return Rows(self._graph.op("Gather", self._table(weight), ids), dtype=self._dtype)

    def linear(self, x: Rows, layers: Sequence[str]) -> Rows:
        inputs = [finished(self._graph, x, self._dtype), self._stacked(layers, "weight")]
        if f"{layers[0]}.bias" in self._weights:
            inputs.append(self._stacked(layers, "bias"))
        return Rows(self._graph.op("Gemm", *inputs, transB=1), dtype=self._dtype)

    def logits(self, x: Rows, weight: str, output: str) -> None:
        inputs = [finished(self._graph, x, self._dtype), self._table(weight)]
        if self._dtype == FLOAT:
            self._graph.named("Gemm", inputs, [output], transB=1)
        else:
            self._graph.named("Cast", [self._graph.op("Gemm", *inputs, transB=1)], [output], to=1)

    def _table(self, weight: str) -> str:
        if self._graph.has_tensor(weight):
            return weight
        return self._graph.tensor(weight, held(weight, self._weights[weight], self._dtype))

    def _stacked(self, layers: Sequence[str], kind: str) -> str:
        name = f"{layers[0]}.{kind}"
        return self._graph.tensor(name, held(name, stacked(self._weights, layers, kind), self._dtype))


class Int8Linears:
    """Weights are fitted to what `calibration` says each layer reads; without it, each is rounded for itself."""

    def __init__(self, graph: OnnxGraph, weights: Mapping[str, Array], calibration: Calibration | None = None) -> None:
        self._graph, self._weights, self._calibration = graph, weights, calibration
        self._quantized: dict[str, Rows] = {}
        self._step = graph.tensor("activation_step", np.array(1 / _LEVELS, np.float32))
        self._zero = graph.tensor("activation_zero", np.array(128, np.uint8))
        self._width = graph.tensor("width_axis", np.array([1], np.int64))
        self._nothing = graph.tensor("nothing", np.array(0, np.float32))

    def embed(self, weight: str, ids: str) -> Rows:
        table, scales = round_columns(self._weights[weight], name=weight)
        rows = self._graph.op("Gather", self._graph.tensor(f"{weight}.rows", table), ids)
        factor = self._graph.op("Gather", self._graph.tensor(f"{weight}.row_scales", scales[:, None]), ids)
        return Rows(self._graph.op("Mul", self._graph.op("Cast", rows, to=1), factor))

    def linear(self, x: Rows, layers: Sequence[str]) -> Rows:
        weight = stacked(self._weights, layers, "weight")
        product = self._product(x, layers[0], weight, self._sample(layers[0]))
        if f"{layers[0]}.bias" not in self._weights:
            return product
        bias = self._graph.tensor(f"{layers[0]}.bias", stacked(self._weights, layers, "bias"))
        return Rows(self._graph.op("Add", finished(self._graph, product), bias))

    def logits(self, x: Rows, weight: str, output: str) -> None:
        product = self._product(x, f"{weight}.columns", self._weights[weight], self._sample(weight))
        assert product.factor is not None, "a quantised product always leaves a factor a row"
        self._graph.named("Mul", [product.value, product.factor], [output])

    def _sample(self, reader: str) -> Array | None:
        return None if self._calibration is None else self._calibration.inputs(reader).weighted()

    def _product(self, x: Rows, name: str, weight: Array, sample: Array | None) -> Rows:
        if x.spiky:
            block = mixing_block(weight.shape[1])
            x, weight = self._mixed(x, weight.shape[1], block), mix_blocks(weight, block)
            sample = None if sample is None else mix_blocks(sample, block)
        quantized = self._quantize(x)
        columns, scales = round_columns(weight, sample, name)
        inputs = (
            quantized.value,
            self._graph.tensor(f"{name}.int8", np.ascontiguousarray(columns.T)),
            self._step,
            self._graph.tensor(f"{name}.scales", scales),
            self._zero,
        )
        return Rows(self._graph.op("MatMulIntegerToFloat", *inputs, domain=CONTRIB), quantized.factor)

    def _mixed(self, x: Rows, width: int, block: int) -> Rows:
        """Blocks of x times an orthogonal matrix; products stay what they are once the other side is mixed too."""
        blocks = self._graph.op("Reshape", x.value, self._graph.tensor("blocks", np.array([-1, block], np.int64)))
        mixed = self._graph.op("MatMul", blocks, self._graph.tensor("hadamard", hadamard(block)))
        shape = self._graph.tensor("mixed_shape", np.array([-1, width], np.int64))
        return Rows(self._graph.op("Reshape", mixed, shape), x.factor)

    def _poison(self, value: str) -> str:
        """0 a row, or NaN where one of its values is not finite: ReduceMax and integers would drop that in silence."""
        total = self._graph.op("ReduceSum", value, self._width, keepdims=1)
        return self._graph.op("Mul", total, self._nothing)

    def _quantize(self, x: Rows) -> Rows:
        """uint8 rows in steps of 1/127 around 128, and what each was divided by; the same rows are quantised once."""
        if x.value not in self._quantized:
            largest = self._graph.op("ReduceMax", self._graph.op("Abs", x.value), self._width, keepdims=1)
            scaled = self._graph.op("Div", x.value, largest)
            rows = self._graph.op("QuantizeLinear", scaled, self._step, self._zero)
            factor = self._graph.op("Add", largest, self._poison(x.value))
            factor = factor if x.factor is None else self._graph.op("Mul", factor, x.factor)
            self._quantized[x.value] = Rows(rows, factor)
        return self._quantized[x.value]


def stacked(weights: Mapping[str, Array], layers: Sequence[str], kind: str) -> Array:
    """The layers' weights [sum of outputs, inputs] or biases [sum of outputs], one after the other."""
    return np.concatenate([weights[f"{name}.{kind}"] for name in layers])
