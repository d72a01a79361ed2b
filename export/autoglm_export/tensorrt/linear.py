"""Linear layers as TensorRT computes them in each precision: weights laid out, scales, explicit Q/DQ.

    fp16, bf16   weights and products in that type
    fp8          E4M3 weights, a scale an output; E4M3 activations, one calibrated scale a layer; products accumulate in
                 float32
    int4         weights of 4 bits in blocks of up to 128 inputs (`int4.py`), a scale a block and output; activations in
                 16 bits

Every product takes float32 activations, rounds them to what it multiplies in, and gives float32. `kv_dtype` is the
16-bit type that goes with fp8 and int4. What float16 would have to hold beyond its 65,504 is left out of it: see
`product_type`, and `_restored_type` for fp8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.int4 import Int4Weight, pack_int4, title_of
from autoglm_export.quantize.rounding import held

from .network import Network, Tensor

FP8_LARGEST = 448.0  # of E4M3
# The up projections of the last layers stay in 16 bits in fp8: "choice logits are unstable when every up projection is
# quantized" (TensorRT-Model-Connect, families/qwen/builder_policy.py, for TensorRT 11.2 and newer).
FP8_KEPT_UP_LAYERS = 22
_WIDE_OUTPUTS = ("output", "down")  # projections to the residual stream


class Linears(Protocol):
    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        """`x` float32 `[B, S, inputs]` -> float32 `[B, S, sum of the layers' outputs]`, without biases."""
        ...


def product_type(layers: Sequence[str], dtype: npt.DTypeLike) -> npt.DTypeLike:
    """What layers side by side multiply in. What goes to the residual stream may pass float16's range (vLLM refuses
    GLM-4 in float16 for it), in bfloat16 it cannot."""
    is_wide = any(name.rpartition(".")[2] in _WIDE_OUTPUTS for name in layers)
    return ml_dtypes.bfloat16 if is_wide and np.dtype(dtype) == np.float16 else dtype


def fp8_kept_layers(spec: ModelSpec) -> frozenset[str]:
    """The layers that fp8 leaves in 16 bits."""
    first = max(0, spec.num_layers - FP8_KEPT_UP_LAYERS)
    return frozenset(f"layers.{layer}.up" for layer in range(first, spec.num_layers))


class HalfLinears:
    """fp16 and bf16."""

    def __init__(self, network: Network, weights: Mapping[str, Array], dtype: npt.DTypeLike) -> None:
        self._network, self._weights, self._dtype = network, weights, dtype

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        dtype = product_type(layers, self._dtype)
        parts = [held(f"{name}.weight", self._weights[f"{name}.weight"], dtype) for name in layers]
        weight: npt.NDArray[Any] = np.concatenate(parts)
        constant = self._network.constant(f"{title_of(layers)}.weight", weight[None])
        return _product(self._network, layers, self._network.cast(x, dtype), constant, transposed=True)


class Fp8Linears:
    """`largest_input`: layers that share their inputs -> the largest magnitude that calibration saw among these.
    `kept`: the layers that stay in 16 bits.

    A dequantised tensor has the type of its scale (IDequantizeLayer's documentation has one type for both), and a
    quantised one is made with the very same scale, so nothing is lost where that is a bfloat16.
    """

    def __init__(
        self,
        network: Network,
        weights: Mapping[str, Array],
        dtype: npt.DTypeLike,
        largest_input: Callable[[Sequence[str]], float],
        kept: Collection[str],
    ) -> None:
        self._network, self._weights = network, weights
        self._restored = _restored_type(dtype)
        self._half, self._kept = HalfLinears(network, weights, dtype), kept
        self.largest_input = largest_input

    def linear(self, x: Tensor, layers: Sequence[str]) -> Tensor:
        if any(name in self._kept for name in layers):
            return self._half.linear(x, layers)
        title, network, restored = title_of(layers), self._network, self._restored
        values, scales = fp8_columns([self._weights[f"{name}.weight"] for name in layers], restored)
        stored = network.constant(f"{title}.weight", values)
        columns = network.constant(f"{title}.weight_scale", scales)
        weight = network.dequantize(f"{title}.weight_dq", stored, columns, restored, axis=0)
        rows = self._rounded(x, title, self.largest_input(layers))
        return _product(network, layers, rows, network.reshape(weight, 1, *values.shape), transposed=True)

    def _rounded(self, x: Tensor, title: str, largest: float) -> Tensor:
        """`x` float32, as E4M3 holds it, in the type of the product."""
        network, step = self._network, np.array(largest / FP8_LARGEST, self._restored)
        narrow = network.constant(f"{title}.input_scale", step.astype(np.float32))
        quantized = network.quantize(x, narrow, ml_dtypes.float8_e4m3fn)
        if self._restored == np.float32:
            return network.dequantize(f"{title}.input", quantized, narrow, np.float32)
        own = network.constant(f"{title}.input_scale_{self._restored}", step)
        return network.dequantize(f"{title}.input", quantized, own, self._restored)


def _restored_type(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """What fp8 is dequantised to beside caches of `dtype`. Beside float16 that is float32: its range is too short for a
    product's sum, and for small scales."""
    return np.dtype(np.float32 if np.dtype(dtype) == np.float16 else dtype)


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
        dtype = product_type(layers, self._dtype)
        restored = network.dequantize(f"{title}.weight_dq", stored, blocks, dtype)
        rows = network.cast(x, dtype)
        return _product(network, layers, rows, network.reshape(restored, 1, *weight.values.shape), transposed=False)


def _product(network: Network, layers: Sequence[str], x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    return network.cast(network.matmul(title_of(layers), x, weight, transposed=transposed), np.float32)


def fp8_columns(parts: Sequence[Array], scale_type: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(E4M3 `[outputs, inputs]`, scales `[outputs]` of `scale_type`)"""
    values, scales = [], []
    for part in parts:
        largest = np.abs(part).max(axis=1)
        scale = (np.where(largest > 0, largest, 1.0) / FP8_LARGEST).astype(scale_type)
        bounded = np.clip(part / scale.astype(np.float32)[:, None], -FP8_LARGEST, FP8_LARGEST)
        values.append(bounded.astype(ml_dtypes.float8_e4m3fn))
        scales.append(scale)
    return np.concatenate(values), np.concatenate(scales)
