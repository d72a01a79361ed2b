"""Linear layers as TensorRT computes them in each precision: weights laid out, scales, explicit Q/DQ.

    fp16, bf16   weights and products in that type
    fp8          E4M3 weights, a scale an output; E4M3 activations, one calibrated scale a layer; products accumulate in float32
    int4         weights of 4 bits in blocks of up to 128 inputs (`int4.py`), a scale a block and output; activations in 16 bits

Every product takes float32 activations, rounds them to what it multiplies in, and gives float32. `kv_dtype` is the
16-bit type that goes with fp8 and int4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .int4 import Int4Weight, pack_int4, title_of
from .rounding import held
from .tensorrt_network import Network, Tensor
from .weights import Array

FP8_LARGEST = 448.0  # of E4M3


class Linears(Protocol):
    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        """`x` float32 `[B, S, inputs]` -> float32 `[B, S, sum of the layers' outputs]`, without biases."""
        ...


class HalfLinears:
    """fp16 and bf16."""

    def __init__(self, network: Network, weights: Mapping[str, Array], dtype: npt.DTypeLike) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        parts = [held(f"{name}.weight", self._weights[f"{name}.weight"], self._dtype) for name in layers]
        weight: npt.NDArray[Any] = np.concatenate(parts)
        constant = self._network.constant(f"{title_of(layers)}.weight", weight[None])
        return _product(self._network, layers, self._network.cast(x, self._dtype), constant, transposed=True)


class Fp8Linears:
    """`largest_input`: layers that share their inputs -> the largest magnitude that calibration saw among these."""

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Array],
        dtype: npt.DTypeLike,
        largest_input: Callable[[Sequence[str]], float],
    ) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype
        self.largest_input = largest_input

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        title, network = title_of(layers), self._network
        step = network.constant(
            f"{title}.input_scale", np.float32(self.largest_input(layers) / FP8_LARGEST).reshape(())
        )
        quantized = network.quantize(x, step, ml_dtypes.float8_e4m3fn)
        rows = network.dequantize(f"{title}.input", quantized, step, self._dtype)
        values, scales = fp8_columns([self._weights[f"{name}.weight"] for name in layers])
        stored = network.constant(f"{title}.weight", values)
        columns = network.constant(f"{title}.weight_scale", scales)
        weight = network.dequantize(f"{title}.weight_dq", stored, columns, self._dtype, axis=0)
        return _product(network, layers, rows, network.reshape(weight, 1, *values.shape), transposed=True)


class Int4Linears:
    """`quantize`: layers that share their inputs -> their weights, side by side."""

    def __init__(self, network: Network, dtype: npt.DTypeLike, quantize: Callable[[Sequence[str]], Int4Weight]) -> None:
        self._network, self._dtype = network, dtype
        self.quantize = quantize

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        title, network = title_of(layers), self._network
        weight = self.quantize(layers)
        stored = network.int4_constant(f"{title}.weight", pack_int4(weight.values), weight.values.shape)
        blocks = network.constant(f"{title}.weight_scale", weight.scales)
        restored = network.dequantize(f"{title}.weight_dq", stored, blocks, self._dtype)
        rows = network.cast(x, self._dtype)
        return _product(network, layers, rows, network.reshape(restored, 1, *weight.values.shape), transposed=False)


def _product(network: Network, layers: Sequence[str], x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    return network.cast(network.matmul(title_of(layers), x, weight, transposed=transposed), np.float32)


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
