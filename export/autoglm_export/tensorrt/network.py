"""A TensorRT network being defined: inputs, outputs and typed constants, and short names for the layers in use.

Networks are strongly typed: a layer computes in the types of its inputs, and only a cast changes a type. TensorRT keeps
pointers to the constants' values until the plan is built; `Network` owns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Tensor = Any  # tensorrt.ITensor
Values = npt.NDArray[Any]


class Network:
    """`trt`: the module. Layers are named after what they compute, so that a failing build and a test can name them."""

    def __init__(self, trt: Any, builder: Any) -> None:
        self.trt = trt
        flag = trt.NetworkDefinitionCreationFlag
        # TensorRT 11 knows no other kind of network, and may know no flag for it.
        flags = 1 << int(flag.STRONGLY_TYPED) if hasattr(flag, "STRONGLY_TYPED") else 0
        self.definition = builder.create_network(flags)
        self._constants: dict[str, Tensor] = {}
        self._values: dict[str, Values] = {}
        self._attentions: list[Any] = []
        self._types = {
            np.dtype(np.float32): trt.DataType.FLOAT,
            np.dtype(np.float16): trt.DataType.HALF,
            np.dtype(np.int32): trt.DataType.INT32,
            np.dtype(np.int64): trt.DataType.INT64,
            np.dtype(ml_dtypes.bfloat16): trt.DataType.BF16,
            np.dtype(ml_dtypes.float8_e4m3fn): trt.DataType.FP8,
        }

    def type_of(self, dtype: npt.DTypeLike) -> Any:
        return self._types[np.dtype(dtype)]

    # ---- what goes in and out

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> Tensor:
        """-1 in `shape`: known at run time."""
        return self.definition.add_input(name, self.type_of(dtype), tuple(shape))

    def output(self, name: str, tensor: Tensor) -> None:
        tensor.name = name
        self.definition.mark_output(tensor)

    def constant(self, name: str, values: Values) -> Tensor:
        """One constant a name: asked for again, the first one is used."""
        if name not in self._constants:
            values = np.ascontiguousarray(values)
            self._constants[name] = self._constant(name, values, self.type_of(values.dtype), values.shape)
        return self._constants[name]

    def holds(self, name: str) -> bool:
        """Whether there is such a constant."""
        return name in self._values

    def values(self, name: str) -> Values:
        """Of a constant; of one of 4 bits, packed."""
        return self._values[name]

    def int4_constant(self, name: str, packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Tensor:
        """`packed`: two values a byte, the first in the low half."""
        assert packed.size * 2 == np.prod(shape), f"{packed.size} bytes do not hold {shape} values of 4 bits"
        return self._constant(name, np.ascontiguousarray(packed), self.trt.DataType.INT4, shape)

    def _constant(self, name: str, values: Values, dtype: Any, shape: tuple[int, ...]) -> Tensor:
        assert name not in self._values, f"two constants are named {name}"
        self._values[name] = values
        size = int(np.prod(shape))
        layer = self.definition.add_constant(shape, self.trt.Weights(dtype, values.ctypes.data, size))
        return self._named(layer, name)

    # ---- layers

    def cast(self, x: Tensor, dtype: npt.DTypeLike) -> Tensor:
        wanted = self.type_of(dtype)
        return x if x.dtype == wanted else self.definition.add_cast(x, wanted).get_output(0)

    def binary(self, operation: str, x: Tensor, y: Tensor) -> Tensor:
        kind = getattr(self.trt.ElementWiseOperation, operation)
        return self.definition.add_elementwise(x, y, kind).get_output(0)

    def unary(self, operation: str, x: Tensor) -> Tensor:
        return self.definition.add_unary(x, getattr(self.trt.UnaryOperation, operation)).get_output(0)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self.definition.add_activation(x, self.trt.ActivationType.SIGMOID).get_output(0)

    def gelu(self, x: Tensor) -> Tensor:
        """x * (1 + erf(x / sqrt(2))) / 2."""
        return self.definition.add_activation(x, self.trt.ActivationType.GELU_ERF).get_output(0)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2."""
        return self.definition.add_activation(x, self.trt.ActivationType.GELU_TANH).get_output(0)

    def reduce(self, operation: str, x: Tensor, axis: int) -> Tensor:
        """Keeps the axis, with size 1."""
        kind = getattr(self.trt.ReduceOperation, operation)
        return self.definition.add_reduce(x, kind, 1 << axis, True).get_output(0)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """0: as in `x`; -1: what is left."""
        layer = self.definition.add_shuffle(x)
        layer.reshape_dims = shape
        return layer.get_output(0)

    def transpose(self, x: Tensor, *order: int) -> Tensor:
        layer = self.definition.add_shuffle(x)
        layer.first_transpose = order
        return layer.get_output(0)

    def matmul(self, name: str, x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
        """x @ weight, or x @ weight^T where `transposed`."""
        operations = self.trt.MatrixOperation
        operation = operations.TRANSPOSE if transposed else operations.NONE
        return self._named(self.definition.add_matrix_multiply(x, operations.NONE, weight, operation), name)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        layer = self.definition.add_softmax(x)
        layer.axes = 1 << axis
        return layer.get_output(0)

    def select(self, condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
        return self.definition.add_select(condition, chosen, other).get_output(0)

    def shape(self, x: Tensor) -> Tensor:
        """int64, one number an axis."""
        return self.definition.add_shape(x).get_output(0)

    def concatenation(self, parts: Sequence[Tensor], axis: int = 0) -> Tensor:
        layer = self.definition.add_concatenation(list(parts))
        layer.axis = axis
        return layer.get_output(0)

    def gather(self, name: str, table: Tensor, indices: Tensor, axis: int) -> Tensor:
        """The shape of `indices` in place of the axis."""
        return self._named(self.definition.add_gather(table, indices, axis), name)

    def slice(self, x: Tensor, start: Sequence[int], sizes: Sequence[int] | Tensor) -> Tensor:
        """`sizes`: numbers, or an int64 tensor of them."""
        known = sizes if isinstance(sizes, tuple) else (0,) * len(start)
        layer = self.definition.add_slice(x, tuple(start), known, (1,) * len(start))
        if not isinstance(sizes, tuple):
            layer.set_input(2, sizes)
        return layer.get_output(0)

    def attention(
        self, name: str, query: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, decomposable: bool
    ) -> Tensor:
        """softmax(query keys^T where `mask`, or all of it) values. `decomposable`: TensorRT may do without a kernel of
        its own."""
        softmax, kind = self.trt.AttentionNormalizationOp.SOFTMAX, self.trt.CausalMaskKind.NONE
        attention = self.definition.add_attention_v2(query, keys, values, softmax, kind)
        attention.name, attention.decomposable = name, decomposable
        if mask is not None:
            attention.mask = mask
        self._attentions.append(attention)
        return attention.get_output(0)

    def allow_decomposition(self) -> None:
        """Of every attention so far."""
        for attention in self._attentions:
            attention.decomposable = True

    def quantize(self, x: Tensor, scale: Tensor, dtype: npt.DTypeLike) -> Tensor:
        return self.definition.add_quantize(x, scale, self.type_of(dtype)).get_output(0)

    def dequantize(self, name: str, x: Tensor, scale: Tensor, dtype: npt.DTypeLike, axis: int | None = None) -> Tensor:
        """`axis` of a scale an index along it; None for one scale, and for blocks, which `scale`'s shape tells."""
        layer = self.definition.add_dequantize(x, scale, self.type_of(dtype))
        if axis is not None:
            layer.axis = axis
        return self._named(layer, name)

    def _named(self, layer: Any, name: str) -> Tensor:
        layer.name = name
        return layer.get_output(0)
