"""`Kernels` by `kernels.cpp`: the bits of `reference.py`, with all cores."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_export.compiler import Target, build, chosen_target

from .interface import Array, NotPositiveDefinite

SOURCE = Path(__file__).with_name("kernels.cpp")
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "products": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _INT, _POINTER],
    "gram": [_POINTER, _LONG, _LONG, _LONG, _LONG, _INT, _POINTER],
    "feedback": [_POINTER, _LONG, _INT, _POINTER],
    "padded_columns": [_LONG],
    "round": [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _FLOAT, _POINTER, _LONG, _LONG, _INT, _POINTER],
    "rotate": [_POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _LONG, _LONG, _INT, _POINTER],
    "largest": [_POINTER, _LONG, _LONG, _INT, _POINTER],
    "mix": [_POINTER, _LONG, _LONG, _LONG, _LONG, _FLOAT, _INT, _POINTER],
    "dot": [_POINTER, _POINTER, _LONG, _LONG, _INT, _POINTER],
    "swiglu": [_POINTER, _POINTER, _LONG, _INT, _POINTER],
    "exp": [_POINTER, _LONG, _INT, _POINTER],
}
_RESULTS = {"feedback": _INT, "padded_columns": _LONG}


class CompiledKernels:
    """`target` None: the best that this CPU runs. `num_threads` None: one a usable core."""

    def __init__(self, target: Target | None = None, num_threads: int | None = None) -> None:
        self._target = target or chosen_target()
        self._num_threads = num_threads or len(os.sched_getaffinity(0))

    @property
    def description(self) -> str:
        return f"{self._target.name}, {self._num_threads} threads"

    def products(self, rows: Array, columns: Array) -> Array:
        rows, columns = _floats(rows), _floats(columns)
        assert rows.shape[1] == columns.shape[1], f"{rows.shape} x {columns.shape}^T"
        out = np.empty((len(rows), len(columns)), np.float32)
        self._call("products", rows, columns, len(rows), len(columns), rows.shape[1], self._num_threads, out)
        return out

    def gram(self, rows: Array, group: slice) -> Array:
        rows, (first, last, _) = _floats(rows), group.indices(rows.shape[1])
        out = np.empty((last - first, last - first), np.float32)
        self._call("gram", rows, len(rows), rows.shape[1], first, last - first, self._num_threads, out)
        return out

    def feedback(self, matrix: Array) -> Array:
        matrix = _floats(matrix)
        out = np.empty_like(matrix)
        if not self._call("feedback", matrix, len(matrix), self._num_threads, out):
            raise NotPositiveDefinite
        return out

    def round_columns(
        self,
        weights: Array,
        scales: Array,
        scale_rows: npt.NDArray[np.int32],
        limit: int,
        feedback: Sequence[tuple[slice, Array]],
    ) -> npt.NDArray[np.int8]:
        weights = _floats(weights)
        columns, inputs = weights.shape
        assert scales.shape[1] == columns and len(scale_rows) == inputs, (weights.shape, scales.shape, scale_rows.shape)
        padding = self._call("padded_columns", columns) - columns
        steps = _floats(np.pad(np.where(scales > 0, scales, np.float32(1)), ((0, 0), (0, padding)), constant_values=1))
        rows = np.ascontiguousarray(scale_rows, np.int32)
        values = np.empty(weights.shape, np.int8)
        for group, factors in feedback:
            first, last, _ = group.indices(inputs)
            args = weights, columns, inputs, steps, rows, limit, _floats(factors), first, last - first
            self._call("round", *args, self._num_threads, values)
        return values

    def largest(self, rows: Array) -> Array:
        rows = _floats(rows)
        out = np.empty(len(rows), np.float32)
        self._call("largest", rows, len(rows), rows.shape[1], self._num_threads, out)
        return out

    def rotate(self, rows: Array, factors: Array, left: Array) -> Array:
        rows = _floats(rows)
        return self._rotate(rows, (len(rows), rows.shape[1], 1), factors, left)

    def rotate_columns(self, matrix: Array, factors: Array, left: Array) -> Array:
        matrix = _floats(matrix)
        return self._rotate(matrix, (matrix.shape[1], 1, matrix.shape[1]), factors, left)

    def _rotate(self, values: Array, layout: tuple[int, int, int], factors: Array, left: Array) -> Array:
        """`layout`: how many vectors there are, from one to the next, and from one of its elements to the next."""
        assert values.size == layout[0] * len(factors), (values.shape, factors.shape)
        factors, left, out = _floats(factors), _floats(left), np.empty_like(values)
        self._call(
            "rotate", values, *layout, factors, left, len(left), len(factors) // len(left), self._num_threads, out
        )
        return out

    def mix(self, rows: Array, block: int, lanes: int, scale: np.float32) -> Array:
        rows = _floats(rows)
        out = np.empty_like(rows)
        self._call("mix", rows, len(rows), rows.shape[1], block, lanes, float(scale), self._num_threads, out)
        return out

    def dot(self, rows: Array, vector: Array) -> Array:
        rows = _floats(rows)
        out = np.empty(len(rows), np.float32)
        self._call("dot", rows, _floats(vector), len(rows), rows.shape[1], self._num_threads, out)
        return out

    def swiglu(self, gate: Array, up: Array) -> Array:
        gate, up = _floats(gate), _floats(up)
        assert gate.shape == up.shape, (gate.shape, up.shape)
        out = np.empty_like(gate)
        self._call("swiglu", gate, up, gate.size, self._num_threads, out)
        return out

    def exp(self, values: Array) -> Array:
        values = _floats(values)
        out = np.empty_like(values)
        self._call("exp", values, values.size, self._num_threads, out)
        return out

    @cached_property
    def _library(self) -> ctypes.CDLL:
        library = ctypes.CDLL(str(build(SOURCE, self._target)))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, f"autoglm_{name}")
            function.argtypes, function.restype = arguments, _RESULTS.get(name)
        return library

    def _call(self, name: str, *arguments: Any) -> Any:
        plain = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments]
        return getattr(self._library, f"autoglm_{name}")(*plain)


def _floats(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32)
