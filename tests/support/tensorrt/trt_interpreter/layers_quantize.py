"""Quantisation: numbers divided by, or multiplied with, scales a tensor, a channel or a block."""

from typing import Final

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array, e4m3
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, given, required, unsupported
from tests.support.tensorrt.trt_interpreter.network import Layer

INTEGER_RANGE: Final = {"INT8": (-128, 127), "INT4": (-8, 7)}


def quantize(layer: Layer, inputs: Inputs) -> Outputs:
    """x / scale rounded to nearest, ties to even, and clamped to the output's range."""
    x, scale = _blocks(layer, inputs)
    dtype, shape = layer.outputs[0].dtype, required(layer, inputs, 0).shape
    scaled = (x / scale).reshape(shape)
    if dtype == "FP8":
        return (e4m3(scaled),)
    if dtype not in INTEGER_RANGE:
        raise unsupported(layer, f"quantisation to {dtype}")
    return (np.clip(np.rint(scaled), *INTEGER_RANGE[dtype]).astype(np.int8),)


def dequantize(layer: Layer, inputs: Inputs) -> Outputs:
    """x * scale."""
    x, scale = _blocks(layer, inputs)
    return ((x * scale).reshape(required(layer, inputs, 0).shape),)


def _blocks(layer: Layer, inputs: Inputs) -> tuple[Array, Array]:
    """The data and its scales, shaped so that they broadcast.

    A scale of one number is the tensor's, a scale of one axis goes along `axis`, and a scale of the data's rank has a
    number for each block: sizes are divided by the scale's sizes.
    """
    x, scale = required(layer, inputs, 0).astype(np.float32, copy=False), required(layer, inputs, 1)
    zero = given(inputs, 2)
    if zero is not None and zero.any():
        raise ValueError(f"{layer} has a zero point that is not zero")
    if not (scale > 0).all():
        raise ValueError(f"{layer} has a scale of {scale.min()}, which is not above 0")
    if scale.size == 1:
        return x, scale.reshape(())
    if scale.ndim == 1 < x.ndim or (scale.ndim == 1 and scale.shape == x.shape):
        return x, _along(layer, x, scale)
    return _blocked(layer, x, scale)


def _along(layer: Layer, x: Array, scale: Array) -> Array:
    axis = layer.attributes["axis"]
    if not 0 <= axis < x.ndim or len(scale) != x.shape[axis]:
        raise ValueError(f"{layer} has {len(scale)} scales along axis {axis} of {x.shape}")
    return scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _blocked(layer: Layer, x: Array, scale: Array) -> tuple[Array, Array]:
    if scale.ndim != x.ndim or any(size % blocks for size, blocks in zip(x.shape, scale.shape, strict=True)):
        raise ValueError(f"{layer} has scales of shape {scale.shape} for data of shape {x.shape}")
    split = [side for size, blocks in zip(x.shape, scale.shape, strict=True) for side in (blocks, size // blocks)]
    return x.reshape(split), scale.reshape([side for blocks in scale.shape for side in (blocks, 1)])
