"""The weights as an engine holds them, read back as float32 from the constants of its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from autoglm_export.checkpoint.weights import Array
from autoglm_export.quantize.int4 import title_of

from .network import Network


class EngineWeights:
    """See `reference_ops.HeldWeights`. What was rounded to 4 or 8 bits comes as rounded."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def vector(self, name: str) -> Array:
        return self._network.values(name).reshape(-1).astype(np.float32)

    def table(self, name: str) -> npt.NDArray[Any]:
        return self._network.values(name)

    def matrix(self, layers: Sequence[str]) -> Array:
        title, network = title_of(layers), self._network
        values = network.values(f"{title}.weight")
        if values.dtype == np.uint8:
            return _of_4_bits(values, network.values(f"{title}.weight_scale"))
        if values.dtype == np.dtype(ml_dtypes.float8_e4m3fn):
            scales = network.values(f"{title}.weight_scale").astype(np.float32)
            return np.asarray(values.astype(np.float32) * scales[:, None])
        return np.asarray(values[0], np.float32)

    def bias(self, layers: Sequence[str]) -> Array | None:
        name = f"{layers[0]}.bias"
        return self.vector(name) if self._network.holds(name) else None


def _of_4_bits(packed: npt.NDArray[np.uint8], scales: npt.NDArray[Any]) -> Array:
    """`[outputs, inputs]`, of what `int4.pack_int4` packed and scales `[inputs / block, outputs]`."""
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)
    values = ((halves.astype(np.int8) ^ 8) - 8).astype(np.float32).reshape(-1, scales.shape[1])
    return np.ascontiguousarray((values * np.repeat(scales.astype(np.float32), len(values) // len(scales), axis=0)).T)
