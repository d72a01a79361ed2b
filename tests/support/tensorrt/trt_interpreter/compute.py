"""Computes one layer of any type, and checks and rounds what it gives."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from tests.support.tensorrt.trt_interpreter import (
    layers_attention,
    layers_index,
    layers_math,
    layers_quantize,
    layers_reduce,
    layers_shape,
)
from tests.support.tensorrt.trt_interpreter.dtypes import Array, float32, typed
from tests.support.tensorrt.trt_interpreter.layers import Compute, Intercept
from tests.support.tensorrt.trt_interpreter.network import Layer, Tensor

COMPUTE: Final[dict[str, Compute]] = {
    "ACTIVATION": layers_math.activation,
    "ATTENTION_INPUT": layers_attention.attention,  # the whole attention; its output layer passes the result on
    "ATTENTION_OUTPUT": layers_shape.identity,
    "CAST": layers_math.cast,
    "CONCATENATION": layers_shape.concatenation,
    "DEQUANTIZE": layers_quantize.dequantize,
    "ELEMENTWISE": layers_math.elementwise,
    "FILL": layers_shape.fill,
    "GATHER": layers_index.gather,
    "IDENTITY": layers_shape.identity,
    "KV_CACHE_UPDATE": layers_attention.kv_cache_update,
    "MATRIX_MULTIPLY": layers_reduce.matrix_multiply,
    "NORMALIZATION": layers_reduce.normalization,
    "QUANTIZE": layers_quantize.quantize,
    "REDUCE": layers_reduce.reduce,
    "ROTARY_EMBEDDING": layers_attention.rotary_embedding,
    "SELECT": layers_math.select,
    "SHAPE": layers_shape.shape,
    "SHUFFLE": layers_shape.shuffle,
    "SLICE": layers_shape.slice_,
    "SOFTMAX": layers_reduce.softmax,
    "SQUEEZE": layers_shape.squeeze,
    "TOPK": layers_index.topk,
    "UNARY": layers_math.unary,
    "UNSQUEEZE": layers_shape.unsqueeze,
}
# these take tensors as they are held, so that a table of half weights or a cache is never converted whole
AS_HELD: Final = frozenset(
    {"ATTENTION_INPUT", "GATHER", "IDENTITY", "KV_CACHE_UPDATE", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE"}
)
MAY_HOLD_NAN: Final = frozenset({"CAST", "KV_CACHE_UPDATE", "SLICE"})  # of a cache, what was never written


def computed(
    layer: Layer, values: Mapping[str, Array], precise: bool, intercept: Intercept | None = None
) -> dict[str, Array]:
    """What `layer` gives, by tensor name, out of the tensors in `values`, or of what `intercept` makes of these.

    Raises ValueError for a result that the network does not declare so, or that is not a number.
    """
    held = tuple(None if tensor is None else values[tensor.name] for tensor in layer.inputs)
    as_held = layer.kind in AS_HELD
    inputs = held if as_held else tuple(None if array is None else float32(array) for array in held)
    if intercept is not None:
        inputs = intercept(layer, inputs)
    with np.errstate(all="ignore"):  # infinities are numbers here, NaN is looked for below
        results = COMPUTE[layer.kind](layer, inputs)
        pairs = list(zip(layer.outputs, results, strict=True))
        return {tensor.name: _checked(layer, tensor, typed(array, tensor.dtype, precise)) for tensor, array in pairs}


def _checked(layer: Layer, tensor: Tensor, array: Array) -> Array:
    if not tensor.admits(array.shape):
        raise ValueError(f"{layer} gives {array.shape} where the network declares {tensor.shape}")
    is_float = array.dtype == np.float32 and array.size and layer.kind not in MAY_HOLD_NAN
    if is_float and np.isnan(array.max()):  # a maximum is NaN where any number is
        raise ValueError(f"{layer} gives NaN")
    return array
