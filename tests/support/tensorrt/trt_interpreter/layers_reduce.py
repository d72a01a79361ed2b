"""Layers that sum over an axis: reductions, matrix products, softmax and normalisation; floats arrive as float32."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, axes_of, only_axis, required, unsupported
from tests.support.tensorrt.trt_interpreter.network import Layer

REDUCE: Final[dict[str, Callable[..., Any]]] = {
    "SUM": np.sum,
    "PROD": np.prod,
    "MAX": np.max,
    "MIN": np.min,
    "AVG": np.mean,
}


def reduce(layer: Layer, inputs: Inputs) -> Outputs:
    """Sum, product, largest, smallest or mean over the axes of the bit mask `axes`."""
    operation = layer.attributes["op"]
    if operation not in REDUCE:
        raise unsupported(layer, f"operation {operation}")
    x, axes = required(layer, inputs, 0), axes_of(layer.attributes["axes"])
    return (np.asarray(REDUCE[operation](x, axis=axes, keepdims=layer.attributes["keep_dims"])),)


def matrix_multiply(layer: Layer, inputs: Inputs) -> Outputs:
    """Products of matrices, of which either may be transposed, or of vectors; leading axes of size one are
    broadcast."""
    a, b = (_operand(required(layer, inputs, i), layer.attributes[f"op{i}"], row=i == 0) for i in (0, 1))
    product = _flat_product(a, b) if all(size == 1 for size in b.shape[:-2]) else a @ b
    vectors = tuple(axis for axis, op in ((-2, "op0"), (-1, "op1")) if layer.attributes[op] == "VECTOR")
    return (np.squeeze(product, vectors),)


def _operand(x: Array, operation: str, row: bool) -> Array:
    """`x` as matrices: a vector becomes one row on the left, one column on the right."""
    if operation == "VECTOR":
        return np.expand_dims(x, -2 if row else -1)
    return np.swapaxes(x, -1, -2) if operation == "TRANSPOSE" else x


def _flat_product(a: Array, b: Array) -> Array:
    """a @ b for one matrix b: one product of all rows of a, where NumPy would call BLAS once a leading index."""
    product = a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[-2:])
    return np.asarray(product).reshape(*a.shape[:-1], b.shape[-1])


def softmax(layer: Layer, inputs: Inputs) -> Outputs:
    """exp(x) / sum(exp(x)) along the axis of the bit mask `axes`."""
    x, axis = required(layer, inputs, 0), only_axis(layer, layer.attributes["axes"])
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return (exponentials / exponentials.sum(axis=axis, keepdims=True),)


def normalization(layer: Layer, inputs: Inputs) -> Outputs:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes of the bit mask `axes`."""
    if layer.attributes["num_groups"] != 1 or not layer.attributes["is_v2"]:
        raise unsupported(layer, f"{layer.attributes['num_groups']} groups, v2 {layer.attributes['is_v2']}")
    x, scale, bias = (required(layer, inputs, i) for i in range(3))
    axes = axes_of(layer.attributes["axes"])
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + np.float32(layer.attributes["epsilon"]))
    return (centred / deviation * scale + bias,)
