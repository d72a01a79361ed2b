"""Arithmetic a number at a time: elementwise, unary, activations, select and cast; floats arrive as float32."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array, native
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, required, unsupported
from tests.support.tensorrt.trt_interpreter.network import Layer


def _quotient(a: Array, b: Array) -> Array:
    """a / b; towards zero for integers."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


ELEMENTWISE: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "SUM": np.add,
    "PROD": np.multiply,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "SUB": np.subtract,
    "DIV": _quotient,
    "POW": np.power,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}

_erf = np.vectorize(math.erf, otypes=[np.float32])

UNARY: Final[dict[str, Callable[[Array], Array]]] = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": lambda x: 1 / x,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "TAN": np.tan,
    "SINH": np.sinh,
    "COSH": np.cosh,
    "ASIN": np.arcsin,
    "ACOS": np.arccos,
    "ATAN": np.arctan,
    "ASINH": np.arcsinh,
    "ACOSH": np.arccosh,
    "ATANH": np.arctanh,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": _erf,
    "NOT": np.logical_not,
    "SIGN": np.sign,
    "ROUND": np.rint,
    "ISINF": np.isinf,
    "ISNAN": np.isnan,
}

# x, alpha, beta
ACTIVATION: Final[dict[str, Callable[[Array, float, float], Array]]] = {
    "RELU": lambda x, a, b: np.maximum(x, 0),
    "SIGMOID": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "TANH": lambda x, a, b: np.tanh(x),
    "LEAKY_RELU": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "SELU": lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(x)),
    "SOFTSIGN": lambda x, a, b: x / (1 + np.abs(x)),
    "SOFTPLUS": lambda x, a, b: a * np.logaddexp(b * x, 0),
    "CLIP": lambda x, a, b: np.maximum(a, np.minimum(b, x)),
    "HARD_SIGMOID": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "SCALED_TANH": lambda x, a, b: a * np.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: np.where(x > a, x, 0),
    "GELU_ERF": lambda x, a, b: 0.5 * x * (1 + _erf(math.sqrt(0.5) * x)),
    "GELU_TANH": lambda x, a, b: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x))),
}


def elementwise(layer: Layer, inputs: Inputs) -> Outputs:
    """A binary operation; sizes of one are broadcast."""
    return (ELEMENTWISE[layer.attributes["op"]](required(layer, inputs, 0), required(layer, inputs, 1)),)


def unary(layer: Layer, inputs: Inputs) -> Outputs:
    """An operation on one tensor."""
    return (UNARY[layer.attributes["op"]](required(layer, inputs, 0)),)


def activation(layer: Layer, inputs: Inputs) -> Outputs:
    """An activation function with its parameters alpha and beta."""
    function = ACTIVATION[layer.attributes["type"]]
    return (function(required(layer, inputs, 0), layer.attributes["alpha"], layer.attributes["beta"]),)


def select(layer: Layer, inputs: Inputs) -> Outputs:
    """The second input where the first is true, else the third."""
    condition, chosen, other = (required(layer, inputs, i) for i in range(3))
    return (np.where(condition, chosen, other),)


def cast(layer: Layer, inputs: Inputs) -> Outputs:
    """Changes the type; floats become integers towards zero. To a 16-bit float, rounding is left to the interpreter."""
    x, dtype = required(layer, inputs, 0), layer.attributes["to_type"]
    if dtype in ("HALF", "BF16"):
        return (x.astype(np.float32, copy=False),)
    if dtype not in ("FLOAT", "INT8", "UINT8", "INT32", "INT64", "BOOL"):
        raise unsupported(layer, f"a cast to {dtype}")
    return (x.astype(native(dtype)),)
