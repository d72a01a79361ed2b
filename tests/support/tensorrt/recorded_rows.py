"""Makes rounding ties harmless where two implementations of one quantised model are compared.

A number in the middle between two steps of E4M3 is rounded up or down by the last bit of float32, which another order
of a sum changes, and one such number moves the logits by a percent. So one of the two keeps the rows that it rounded,
and the other one rounds these where it would round the same rows but for that last bit. Nothing else is forgiven: every
row is the own one to `SAME` of its largest number, and a row that no recorded one is that close to is left as it is.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.tensorrt.trt_interpreter.layers import Inputs, required
from tests.support.tensorrt.trt_interpreter.network import Layer

Rows = npt.NDArray[np.float32]
SAME = 1e-5  # noise of float32 is a tenth of it


class RecordedRows:
    """All rows before rounding, of all layers: what a layer reads differs between layers by far more than `SAME`."""

    def __init__(self) -> None:
        self._recorded: list[Rows] = []

    def record(self, activations: Any) -> None:
        """Keep the rows of `activations`, a tensor `[..., width]`; none may come after the first use."""
        assert "_by_width" not in self.__dict__, "rows were used already"
        self._recorded.append(np.array(activations, np.float32).reshape(-1, activations.shape[-1]))

    def intercept(self, layer: Layer, inputs: Inputs) -> Inputs:
        """Give layers that quantise the recorded rows in place of the same ones."""
        if layer.kind != "QUANTIZE":
            return inputs
        return self.in_place_of(required(layer, inputs, 0)), *inputs[1:]

    def in_place_of(self, activations: Rows) -> Rows:
        """`activations`, in which each row that is a recorded one but for noise is that one."""
        rows = activations.reshape(-1, activations.shape[-1])
        known = self._by_width.get(rows.shape[1])
        if known is None:
            return activations
        distances = np.abs(rows[:, None] - known).max(axis=2)
        nearest = known[distances.argmin(axis=1)]
        is_same = distances.min(axis=1) <= SAME * np.abs(nearest).max(axis=1)
        return np.where(is_same[:, None], nearest, rows).reshape(activations.shape)

    @cached_property
    def _by_width(self) -> dict[int, Rows]:
        widths = {rows.shape[1] for rows in self._recorded}
        of = {width: [rows for rows in self._recorded if rows.shape[1] == width] for width in widths}
        return {width: np.unique(np.concatenate(rows), axis=0) for width, rows in of.items()}
