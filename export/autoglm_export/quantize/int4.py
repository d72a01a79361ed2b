"""Weights of 4 bits: symmetric, in blocks of inputs that share a scale for each output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array
from autoglm_export.errors import UnsupportedModel
from autoglm_export.reproducible import kernels

from .rounding import DAMPING, feedback_of

BLOCK = 128  # inputs that share a scale; fewer where they do not divide
SMALLEST_BLOCK = 16
LARGEST = 7
_CLIPS = np.linspace(1.0, 0.5, 21, dtype=np.float32)  # of a block's largest weight, tried as the largest that is kept


@dataclass(frozen=True, slots=True, eq=False)
class Int4Weight:
    """A weight is `values * scales` of its block; the inputs come first, as TensorRT takes them."""

    values: npt.NDArray[np.int8]  # [inputs, outputs], -7 ... 7
    scales: npt.NDArray[Any]  # [inputs / block, outputs], float16 or bfloat16

    def restored(self) -> Array:
        """float32 `[outputs, inputs]`"""
        block = len(self.values) // len(self.scales)
        scales = np.repeat(self.scales.astype(np.float32), block, axis=0)
        return np.ascontiguousarray((self.values * scales).T)


def title_of(layers: Sequence[str]) -> str:
    """The name of layers side by side: `layers.0.query+key+value`."""
    first, *rest = layers
    return "+".join([first, *(name.rpartition(".")[2] for name in rest)])


def nearest(weight: Array, scale_dtype: npt.DTypeLike, layer: str) -> Int4Weight:
    """`weight` `[outputs, inputs]`, each rounded to the nearest step."""
    block = block_of(weight.shape[1], layer)
    scales = best_scales(weight, np.ones(weight.shape[1], np.float32), block, scale_dtype)
    steps = _steps(weight.T, np.repeat(scales.astype(np.float32), block, axis=0))
    return Int4Weight(steps.astype(np.int8), scales)


def fitted(weight: Array, inputs: Array, scale_dtype: npt.DTypeLike, layer: str) -> Int4Weight:
    """`weight` `[outputs, inputs]`, rounded so that its products with `inputs` `[tokens, inputs]` stay near: the inputs
    with the most energy first, and the others make up for them."""
    block, energy = block_of(weight.shape[1], layer), np.square(inputs).sum(axis=0)
    scales = best_scales(weight, energy, block, scale_dtype)
    order = np.argsort(energy, kind="stable")
    blocks = (order // block).astype(np.int32)
    feedback = feedback_of(np.ascontiguousarray(inputs[:, order]), DAMPING)
    values = np.empty(weight.shape[::-1], np.int8)
    values[order] = kernels().round_columns(weight[:, order], scales.astype(np.float32), blocks, LARGEST, feedback).T
    return Int4Weight(values, scales)


def block_of(num_inputs: int, layer: str) -> int:
    """The largest power of two up to BLOCK that divides `num_inputs`."""
    block = min(num_inputs & -num_inputs, BLOCK)
    if block < SMALLEST_BLOCK:
        raise UnsupportedModel(
            f"int4: {layer} has {num_inputs} inputs, which no block of {SMALLEST_BLOCK} ... {BLOCK} divides"
        )
    return block


def best_scales(weight: Array, energy: Array, block: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`[inputs / block, outputs]`: of a few scales that clip a block's largest weights more and more, the one with the
    least squared error, each input weighed by its `energy` `[inputs]`."""
    blocks, weighed = weight.reshape(len(weight), -1, block), (energy + 1e-9).reshape(1, -1, block)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    best_error = np.full(largest.shape, np.inf, np.float32)
    best = np.ones(largest.shape, np.float32)
    for clip in _CLIPS:
        scale = _held(largest * clip / LARGEST, dtype)
        error = (weighed * np.square(blocks - _steps(blocks, scale) * scale)).sum(axis=2, keepdims=True)
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    return np.ascontiguousarray(best[:, :, 0].T.astype(dtype))


def _held(scale: Array, dtype: npt.DTypeLike) -> Array:
    """As `dtype` can hold it, and never 0."""
    smallest = np.float32(ml_dtypes.finfo(dtype).smallest_normal)
    with np.errstate(over="ignore"):
        held: Array = np.maximum(scale, smallest).astype(dtype).astype(np.float32)
    if not np.isfinite(held).all():
        raise UnsupportedModel(
            f"int4: a block has the scale {scale.max():g}, beyond {float(ml_dtypes.finfo(dtype).max):g} of "
            f"{np.dtype(dtype)}; take a wider precision"
        )
    return held


def _steps(values: Array, scale: Array) -> Array:
    steps: Array = np.clip(np.rint(values / scale), -LARGEST, LARGEST)
    return steps


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two values a byte along the last axis, the first in the low half."""
    halves = values.reshape(-1, 2).astype(np.uint8) & np.uint8(0xF)
    packed: npt.NDArray[np.uint8] = halves[:, 0] | (halves[:, 1] << np.uint8(4))
    return packed
