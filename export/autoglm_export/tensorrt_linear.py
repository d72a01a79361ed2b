"""Linear layers as TensorRT computes them in each precision: weights laid out, scales, explicit Q/DQ.

    fp16, bf16   weights and products in that type
    fp8          E4M3 weights, a scale an output; E4M3 activations, one calibrated scale a layer; products accumulate in float32
    int4         weights of 4 bits in blocks of up to 128 inputs, a scale a block and output; activations in 16 bits

Every product takes float32 activations, rounds them to what it multiplies in, and gives float32. `kv_dtype` is the
16-bit type that goes with fp8 and int4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import UnsupportedModel
from .tensorrt_network import Network, Tensor
from .weights import Array

INT4_BLOCK = 128  # inputs that share a scale; fewer where they do not divide
SMALLEST_INT4_BLOCK = 16
INT4_LARGEST = 7
FP8_LARGEST = 448.0  # of E4M3
_CLIPS = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # of a block's largest weight, tried as the largest that is kept


class Linears(Protocol):
    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        """`x` float32 `[B, S, inputs]` -> float32 `[B, S, sum of the layers' outputs]`, without biases."""
        ...


class HalfLinears:
    """fp16 and bf16."""

    def __init__(self, network: Network, weights: Mapping[str, Array], dtype: npt.DTypeLike) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        weight = rounded([self._weights[f"{name}.weight"] for name in layers], self._dtype)
        constant = self._network.constant(f"{_title(layers)}.weight", weight[None])
        return _product(self._network, layers, self._network.cast(x, self._dtype), constant, transposed=True)


class Fp8Linears:
    """`activation_maxima`: layer -> the largest magnitude that calibration saw among its inputs."""

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Array],
        dtype: npt.DTypeLike,
        activation_maxima: Mapping[str, float],
    ) -> None:
        self._network, self._weights, self._dtype, self._maxima = network, weights, dtype, activation_maxima

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        title, network = _title(layers), self._network
        step = network.constant(f"{title}.input_scale", np.float32(self._maxima[layers[0]] / FP8_LARGEST).reshape(()))
        quantized = network.quantize(x, step, ml_dtypes.float8_e4m3fn)
        rows = network.dequantize(f"{title}.input", quantized, step, self._dtype)
        values, scales = fp8_columns([self._weights[f"{name}.weight"] for name in layers])
        stored = network.constant(f"{title}.weight", values)
        columns = network.constant(f"{title}.weight_scale", scales)
        weight = network.dequantize(f"{title}.weight_dq", stored, columns, self._dtype, axis=0)
        return _product(network, layers, rows, network.reshape(weight, 1, *values.shape), transposed=True)


class Int4Linears:
    def __init__(self, network: Network, weights: Mapping[str, Array], dtype: npt.DTypeLike) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        title, network = _title(layers), self._network
        weight = np.concatenate([self._weights[f"{name}.weight"] for name in layers])
        values, scales = int4_blocks(weight, int4_block_of(weight.shape[1], title), self._dtype)
        shape = (weight.shape[1], weight.shape[0])
        stored = network.int4_constant(f"{title}.weight", pack_int4(values), shape)
        blocks = network.constant(f"{title}.weight_scale", scales)
        restored = network.dequantize(f"{title}.weight_dq", stored, blocks, self._dtype)
        rows = network.cast(x, self._dtype)
        return _product(network, layers, rows, network.reshape(restored, 1, *shape), transposed=False)


def _title(layers: Sequence[str]) -> str:
    """`layers.0.query+key+value`"""
    first, *rest = layers
    return "+".join([first, *(name.rpartition(".")[2] for name in rest)])


def _product(network: Network, layers: Sequence[str], x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    return network.cast(network.matmul(_title(layers), x, weight, transposed=transposed), np.float32)


def rounded(parts: Sequence[Array], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The parts' rows one after the other in `dtype`. Raises UnsupportedModel for a value that it cannot hold."""
    result: npt.NDArray[Any] = np.concatenate([part.astype(dtype) for part in parts])
    for part in parts:
        largest = float(np.abs(part).max(initial=0.0))
        if not largest <= float(ml_dtypes.finfo(dtype).max):
            raise UnsupportedModel(f"a weight of magnitude {largest:g} does not fit {np.dtype(dtype).name}; use bf16")
    return result


def fp8_columns(parts: Sequence[Array]) -> tuple[npt.NDArray[Any], Array]:
    """(E4M3 `[outputs, inputs]`, float32 scales `[outputs]`)"""
    values, scales = [], []
    for part in parts:
        largest = np.abs(part).max(axis=1)
        scale = (np.where(largest > 0, largest, 1.0) / FP8_LARGEST).astype(np.float32)
        bounded = np.clip(part / scale[:, None], -FP8_LARGEST, FP8_LARGEST)
        values.append(bounded.astype(ml_dtypes.float8_e4m3fn))
        scales.append(scale)
    return np.concatenate(values), np.concatenate(scales)


def int4_block_of(num_inputs: int, layer: str) -> int:
    """The largest power of two up to INT4_BLOCK that divides `num_inputs`."""
    block = min(num_inputs & -num_inputs, INT4_BLOCK)
    if block < SMALLEST_INT4_BLOCK:
        raise UnsupportedModel(
            f"int4: {layer} has {num_inputs} inputs, which blocks of {SMALLEST_INT4_BLOCK} ... {INT4_BLOCK} do not divide"
        )
    return block


def int4_blocks(weight: Array, block: int, dtype: npt.DTypeLike) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """(values -7 ... 7 `[inputs, outputs]`, scales in `dtype` `[inputs / block, outputs]`) of `weight` `[outputs, inputs]`.

    Each block takes the scale, of a few that clip its largest weights more and more, with the least squared error.
    """
    blocks = weight.reshape(len(weight), -1, block)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    best_error = np.full(largest.shape, np.inf, np.float32)
    best_scale = np.ones(largest.shape, np.float32)
    for clip in _CLIPS:
        scale = _held(largest * clip / INT4_LARGEST, dtype)
        error = np.square(blocks - _steps(blocks, scale) * scale).sum(axis=2, keepdims=True)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
    values = _steps(blocks, best_scale).reshape(weight.shape).astype(np.int8)
    return np.ascontiguousarray(values.T), np.ascontiguousarray(best_scale[:, :, 0].T.astype(dtype))


def _held(scale: Array, dtype: npt.DTypeLike) -> Array:
    """As `dtype` can hold it, and never 0."""
    smallest = np.float32(ml_dtypes.finfo(dtype).smallest_normal)
    held: Array = np.maximum(scale, smallest).astype(dtype).astype(np.float32)
    return held


def _steps(blocks: Array, scale: Array) -> Array:
    steps: Array = np.clip(np.rint(blocks / scale), -INT4_LARGEST, INT4_LARGEST)
    return steps


def pack_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two values a byte along the last axis, the first in the low half."""
    halves = values.reshape(-1, 2).astype(np.uint8) & np.uint8(0xF)
    packed: npt.NDArray[np.uint8] = halves[:, 0] | (halves[:, 1] << np.uint8(4))
    return packed


LinearsFactory = Callable[[Network, Mapping[str, Array]], Linears]
