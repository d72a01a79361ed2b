"""Layers that move numbers and compute none: they take tensors of any type as they are held."""

from typing import Any

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array, native
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, given, required, unsupported
from tests.support.tensorrt.trt_interpreter.network import Layer


def identity(layer: Layer, inputs: Inputs) -> Outputs:
    """Passes its input on."""
    return (required(layer, inputs, 0),)


def shuffle(layer: Layer, inputs: Inputs) -> Outputs:
    """A transpose, a reshape and a transpose; the reshape's sizes are an attribute or the second input."""
    x = _transposed(required(layer, inputs, 0), layer.attributes["first_transpose"])
    dims = layer.attributes["reshape_dims"] if given(inputs, 1) is None else tuple(map(int, required(layer, inputs, 1)))
    if dims is not None:
        x = x.reshape(_reshaped(layer, x.shape, dims))
    return (_transposed(x, layer.attributes["second_transpose"]),)


def _transposed(x: Array, permutation: tuple[int, ...]) -> Array:
    return x.transpose(permutation[: x.ndim])


def _reshaped(layer: Layer, shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """`dims` where 0 copies the size at the same place of `shape`, if it is a placeholder; -1 is left to NumPy."""
    if not layer.attributes["zero_is_placeholder"]:
        return dims
    if any(size == 0 and i >= len(shape) for i, size in enumerate(dims)):
        raise ValueError(f"{layer} copies a dimension of {shape} that is not there: {dims}")
    return tuple(shape[i] if size == 0 else size for i, size in enumerate(dims))


def squeeze(layer: Layer, inputs: Inputs) -> Outputs:
    """Drops the axes of size one that the second input names, or every axis that the network declares to be one."""
    x, axes = required(layer, inputs, 0), given(inputs, 1)
    declared = layer.inputs[0]
    assert declared is not None
    named = tuple(i for i, size in enumerate(declared.shape) if size == 1) if axes is None else tuple(map(int, axes))
    return (np.squeeze(x, named),)


def unsqueeze(layer: Layer, inputs: Inputs) -> Outputs:
    """Inserts axes of size one where the second input says, counted in the output."""
    return (np.expand_dims(required(layer, inputs, 0), tuple(map(int, required(layer, inputs, 1)))),)


def concatenation(layer: Layer, inputs: Inputs) -> Outputs:
    """Joins its inputs along `axis`."""
    arrays = [required(layer, inputs, i) for i in range(len(inputs))]
    return (np.concatenate(arrays, axis=layer.attributes["axis"]),)


def shape(layer: Layer, inputs: Inputs) -> Outputs:
    """The sizes of its input, INT64."""
    return (np.array(required(layer, inputs, 0).shape, np.int64),)


def slice_(layer: Layer, inputs: Inputs) -> Outputs:
    """Takes `shape` numbers along each axis from `start` on, `stride` apart; each of them may be an input (1, 2, 3)."""
    if layer.attributes["mode"] != "STRICT_BOUNDS":
        raise unsupported(layer, f"mode {layer.attributes['mode']}")
    x = required(layer, inputs, 0)
    start, size, stride = (_dims(layer, inputs, i, name) for i, name in enumerate(("start", "shape", "stride"), 1))
    axes = layer.attributes["axes"] if given(inputs, 5) is None else _dims(layer, inputs, 5, "axes")
    index = [slice(None)] * x.ndim
    for axis, first, count, step in zip(axes or range(x.ndim), start, size, stride, strict=True):
        index[axis] = _strict(layer, axis, x.shape[axis], first, count, step)
    return (x[tuple(index)],)


def _dims(layer: Layer, inputs: Inputs, index: int, name: str) -> tuple[int, ...]:
    dims = given(inputs, index)
    return layer.attributes[name] if dims is None else tuple(map(int, dims))


def _strict(layer: Layer, axis: int, length: int, start: int, count: int, stride: int) -> slice:
    last = start + (count - 1) * stride
    if count and not (0 <= start < length and 0 <= last < length):
        raise ValueError(f"{layer} reads {start} ... {last} of axis {axis}, which has {length} positions")
    stop = last + (1 if stride > 0 else -1)
    return slice(start, None if stop < 0 else stop, stride) if count else slice(0, 0)


def fill(layer: Layer, inputs: Inputs) -> Outputs:
    """LINSPACE: alpha + sum(beta[d] * index[d]); shape, alpha and beta are attributes or inputs 0, 1 and 2."""
    if layer.attributes["operation"] != "LINSPACE":
        raise unsupported(layer, f"operation {layer.attributes['operation']}")
    dims = layer.attributes["shape"] if given(inputs, 0) is None else tuple(map(int, required(layer, inputs, 0)))
    dtype = native(layer.outputs[0].dtype)
    start = layer.attributes["alpha"] if given(inputs, 1) is None else required(layer, inputs, 1)
    steps = np.atleast_1d(layer.attributes["beta"] if given(inputs, 2) is None else required(layer, inputs, 2))
    if len(steps) != len(dims):
        raise ValueError(f"{layer} has {len(steps)} steps for a tensor of {len(dims)} axes")
    total: Any = np.asarray(start, dtype)
    for step, index in zip(steps, np.indices(dims, sparse=True), strict=True):
        total = total + index.astype(dtype) * step.astype(dtype)
    return (np.broadcast_to(total, dims),)
