"""What the functions that compute layers share: their signature, and how they read inputs and refuse settings."""

from collections.abc import Callable
from typing import TypeAlias

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_interpreter.network import Layer

Inputs: TypeAlias = tuple[Array | None, ...]
Outputs: TypeAlias = tuple[Array, ...]
Compute: TypeAlias = Callable[[Layer, Inputs], Outputs]
Intercept: TypeAlias = Callable[[Layer, Inputs], Inputs]  # what a layer is to compute with, instead of what it reads


def given(inputs: Inputs, index: int) -> Array | None:
    """The input at `index`, None where it is not set or the layer has fewer."""
    return inputs[index] if index < len(inputs) else None


def required(layer: Layer, inputs: Inputs, index: int) -> Array:
    """The input at `index`; ValueError where it is not set."""
    array = given(inputs, index)
    if array is None:
        raise ValueError(f"{layer} has no input {index}")
    return array


def unsupported(layer: Layer, what: str) -> NotImplementedError:
    """The error for a layer that is interpreted, but not with this setting."""
    return NotImplementedError(f"{layer}: {what} is not interpreted")


def axes_of(mask: int) -> tuple[int, ...]:
    """The axes whose bits are set in `mask`, the lowest bit being axis 0."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)


def only_axis(layer: Layer, mask: int) -> int:
    """The single axis of `mask`; NotImplementedError for more."""
    axes = axes_of(mask)
    if len(axes) != 1:
        raise unsupported(layer, f"a reduction over axes {axes}")
    return axes[0]
