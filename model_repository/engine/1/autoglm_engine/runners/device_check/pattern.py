"""What a slot's caches hold while a GPU is checked: numbers that follow from where they stand, and poison behind them.

Every number is one of -127 ... 127 times a power of two, so float16 and bfloat16 hold it exactly; who computes what is
to come of it needs no cache, only this module. Poison is finite, as what a former answer left behind is, but far
larger: a kernel that lets a single poisoned position count is off by more than any rounding, with these keys or with
the same of the other sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError

KINDS = ("key", "value")
POISON = 512.0
LARGEST = 127
_SEEDS = {"key": 0x9E3779B9, "value": 0x85EBCA6B, "poison": 0xC2B2AE35}
_POSITIONS_PER_HEAD = 1 << 24

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def pattern(kind: str, num_heads: int, length: int, head_size: int) -> npt.NDArray[np.int8]:
    """`[num_heads, length, head_size]`, -127 ... 127, spread evenly; the same for any `length` that has the
    position."""
    mixed = _mixed(_SEEDS[kind], num_heads, length, head_size)
    numbers = ((mixed >> np.uint32(8)) % np.uint32(2 * LARGEST + 1)).astype(np.int16) - LARGEST
    return numbers.astype(np.int8)


def poison(num_heads: int, length: int, head_size: int) -> Floats:
    """`[num_heads, length, head_size]`: POISON with a sign that follows from the place."""
    signs = _mixed(_SEEDS["poison"], num_heads, length, head_size) & np.uint32(0x100)
    return np.where(signs, np.float32(POISON), np.float32(-POISON))


def scaled(numbers: npt.NDArray[np.int8], exponent: int) -> Floats:
    """`numbers` times 2 ** `exponent`."""
    return np.ldexp(numbers.astype(np.float32), exponent)


def stored(values: Floats, dtype: str) -> Bits:
    """As a cache of `dtype` holds values that it can hold exactly; float16 or bfloat16."""
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    _check(dtype)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def restored(bits: Bits, dtype: str) -> Floats:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    _check(dtype)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _check(dtype: str) -> None:
    if dtype != "bfloat16":
        raise ArtifactError(f"the artifact's cache is of the type {dtype}; a GPU's is float16 or bfloat16")


def _mixed(seed: int, num_heads: int, length: int, head_size: int) -> npt.NDArray[Any]:
    """uint32 hashes of the places (finaliser of MurmurHash3)."""
    heads = np.arange(num_heads, dtype=np.uint32)[:, None, None] * np.uint32(_POSITIONS_PER_HEAD)
    places = (heads + np.arange(length, dtype=np.uint32)[:, None]) * np.uint32(head_size)
    x = places + np.arange(head_size, dtype=np.uint32) + np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x
