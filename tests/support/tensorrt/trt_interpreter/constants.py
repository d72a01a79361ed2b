"""The numbers of a constant layer, out of TensorRT's `Weights`.

`Weights.numpy()` gives NumPy's own types only. For BF16, FP8 and INT4 the struct behind the binding's object is read:
nvinfer1::Weights is {int32 type; const void* values; int64 count}, and the first field of a pybind11 instance, right
after Python's object header, points to it. Type and count are compared with what the binding says before any use.
"""

import ctypes
from typing import Any

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array, native


class _Weights(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def constant_values(weights: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    """A copy of a constant's `weights` (an array or a Weights object) in the NumPy type of `dtype`, INT4 unpacked."""
    if isinstance(weights, np.ndarray):
        return weights.astype(native(dtype), copy=True).reshape(shape)
    if dtype == "INT4":
        return _int4(_buffer(weights, (weights.size + 1) // 2), weights.size).reshape(shape)
    return np.array(_buffer(weights, weights.size * native(dtype).itemsize).view(native(dtype))).reshape(shape)


def _buffer(weights: Any, num_bytes: int) -> Array:
    """The bytes of `weights`, not copied."""
    address = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    assert address is not None, "a Weights object without a struct behind it"
    struct = _Weights.from_address(address)
    found, said = (struct.type, struct.count), (int(weights.dtype), weights.size)
    assert found == said and struct.values, f"the struct behind the weights says {found}, the binding says {said}"
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(struct.values))


def _int4(packed: Array, count: int) -> Array:
    """Two's complement numbers of -8 ... 7 as int8; the low half of a byte comes first."""
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.asarray((nibbles ^ 8) - 8, np.int8)
