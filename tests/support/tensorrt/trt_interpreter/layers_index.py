"""Layers that look numbers up: gather and top-k."""

import numpy as np

from tests.support.tensorrt.trt_interpreter.dtypes import Array
from tests.support.tensorrt.trt_interpreter.layers import Inputs, Outputs, given, only_axis, required
from tests.support.tensorrt.trt_interpreter.network import Layer


def gather(layer: Layer, inputs: Inputs) -> Outputs:
    """DEFAULT, ELEMENT and ND as in ONNX's Gather, GatherElements and GatherND; an index out of range raises."""
    data, indices = required(layer, inputs, 0), required(layer, inputs, 1)
    mode = {"DEFAULT": _gather_rows, "ELEMENT": _gather_elements, "ND": _gather_nd}[layer.attributes["mode"]]
    return (mode(layer, data, indices),)


def _in_range(layer: Layer, indices: Array, size: int, axis: int) -> Array:
    if indices.size and not (indices.min() >= 0 and indices.max() < size):
        found = f"{indices.min()} ... {indices.max()}"
        raise ValueError(f"{layer} is asked for {found} of axis {axis}, which has 0 ... {size - 1}")
    return indices


def _gather_rows(layer: Layer, data: Array, indices: Array) -> Array:
    axis, batched = layer.attributes["axis"], layer.attributes["num_elementwise_dims"]
    indices = _in_range(layer, indices, data.shape[axis], axis)
    if not batched:
        return np.take(data, indices, axis)
    pairs = zip(data, indices, strict=True)
    return np.stack([np.take(row, index, axis - 1) for row, index in pairs])


def _gather_elements(layer: Layer, data: Array, indices: Array) -> Array:
    axis = layer.attributes["axis"]
    return np.take_along_axis(data, _in_range(layer, indices, data.shape[axis], axis), axis)


def _gather_nd(layer: Layer, data: Array, indices: Array) -> Array:
    """`indices` [batch dims, ..., depth] picks data[batch dims, index_0, ..., index_depth-1]."""
    batched = layer.attributes["num_elementwise_dims"]
    if data.shape[:batched] != indices.shape[:batched]:
        raise ValueError(f"{layer} pairs {data.shape[:batched]} rows of data with {indices.shape[:batched]} of indices")
    depth = indices.shape[-1]
    picked = tuple(_in_range(layer, indices[..., d], data.shape[batched + d], batched + d) for d in range(depth))
    rows = np.indices(data.shape[:batched], sparse=True)
    lengthened = tuple(row.reshape(row.shape + (1,) * (indices.ndim - 1 - batched)) for row in rows)
    return np.asarray(data[lengthened + picked])


def topk(layer: Layer, inputs: Inputs) -> Outputs:
    """The k largest (MAX, descending) or smallest (MIN, ascending) numbers and their places.

    TensorRT does not say which of equal numbers comes first: here it is the one with the lower index.
    """
    x, count = required(layer, inputs, 0), given(inputs, 1)
    axis = only_axis(layer, layer.attributes["axes"])
    k = layer.attributes["k"] if count is None else int(count.reshape(()))
    if not 0 < k <= x.shape[axis]:
        raise ValueError(f"{layer} asks for {k} of {x.shape[axis]} numbers")
    rows = np.moveaxis(x, axis, -1)
    places = _best(rows.reshape(-1, rows.shape[-1]), k, layer.attributes["op"] == "MAX")
    indices = np.moveaxis(places.reshape(*rows.shape[:-1], k), -1, axis)
    return np.take_along_axis(x, indices, axis), indices


def _best(rows: Array, k: int, largest: bool) -> Array:
    """Places of the k best numbers of each row, [rows, k]; equal numbers in the order of their places."""
    keys = -rows if largest else rows
    places = np.empty((len(rows), k), np.int64)
    for row, key in enumerate(keys):
        candidates = np.flatnonzero(key <= np.partition(key, k - 1)[k - 1])
        places[row] = candidates[np.argsort(key[candidates], kind="stable")[:k]]
    return places
