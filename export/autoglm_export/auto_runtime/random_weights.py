"""Weights at random, for a model that is only a shape: how fast it runs does not depend on what it says."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from autoglm_export.checkpoint.weights import Array, Shape, weight_shapes
from autoglm_export.model.spec import ModelSpec


class RandomWeights(Mapping[str, Array]):
    """Every weight of `spec`, made at each access and never kept: equal names give equal arrays.

    Matrices are scaled by 1 / sqrt(columns), so that activations stay near 1 in half precision; norms are 1.
    `num_drawn`: so many numbers are drawn for a weight; they repeat in larger ones.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0, *, num_drawn: int = 1 << 20) -> None:
        self._shapes, self._seed, self._num_drawn = weight_shapes(spec), seed, num_drawn

    def __getitem__(self, name: str) -> Array:
        shape = self._shapes[name]
        if name.endswith("norm"):
            return np.ones(shape, np.float32)
        random = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        block = random.standard_normal(min(self._num_drawn, math.prod(shape)), np.float32)
        block /= np.float32(math.sqrt(shape[-1]))
        return np.resize(block, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]
