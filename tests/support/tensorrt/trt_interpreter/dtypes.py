"""TensorRT's data types in NumPy, and rounding to them.

A tensor of a reduced float type (HALF, BF16, FP8) is held either in that type or as the same numbers in float32:
weights and caches stay small, activations are ready to compute with.
"""

from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NATIVE: Final[dict[str, np.dtype[Any]]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT4": np.dtype(np.int8),  # unpacked: NumPy has no four-bit integer
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
SIXTEEN_BIT: Final = frozenset({"HALF", "BF16"})
REDUCED: Final = SIXTEEN_BIT | {"FP8"}
FP8_MAX: Final = 448.0


def native(dtype: str) -> np.dtype[Any]:
    """The NumPy type of a TensorRT type; NotImplementedError for a type that this interpreter does not hold."""
    if dtype not in NATIVE:
        raise NotImplementedError(f"tensors of type {dtype} are not interpreted, only {', '.join(NATIVE)}")
    return NATIVE[dtype]


def float32(x: Array) -> Array:
    """`x` as float32 where it is in a reduced float type, else `x` itself."""
    return x.astype(np.float32) if x.dtype in (NATIVE[name] for name in REDUCED) else x


def e4m3(x: Array) -> Array:
    """The nearest FP8 E4M3 numbers, ties to even, saturating at 448; float32 in and out."""
    return np.clip(x, -FP8_MAX, FP8_MAX).astype(NATIVE["FP8"]).astype(np.float32)


def typed(x: Array, dtype: str, precise: bool) -> Array:
    """`x` as a tensor of `dtype`: rounded to it, unless `precise` and the type is half or bfloat16."""
    wanted = native(dtype)
    if x.dtype == wanted:
        return x
    if dtype == "FP8":
        return e4m3(x)
    if dtype in SIXTEEN_BIT:
        return float32(x) if precise else x.astype(wanted).astype(np.float32)
    return x.astype(wanted)


def outward(x: Array, dtype: str, precise: bool) -> Array:
    """`x` as a caller gets it: in the type of the tensor, or float32 for half and bfloat16 where `precise`."""
    return float32(x) if precise and dtype in SIXTEEN_BIT else x.astype(native(dtype), copy=False)
