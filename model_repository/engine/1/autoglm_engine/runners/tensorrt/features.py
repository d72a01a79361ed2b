"""Rows of images' features on their way to the GPU, where a network reads them in place of embeddings.

The network's input `image_features` is one block of so many rows as a call may have tokens, and every call reads the
same: before a call that has tokens of images its rows are copied to the block's begin, on the same stream. A token id
of -1 - i stands for row i. Calls without images read what was there before, and use none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoglm_engine.core import Span, TokenIds
from autoglm_engine.runners.cuda.api import Cuda, HostBytes
from autoglm_engine.runners.cuda.memory import DeviceMemory
from autoglm_engine.runners.image_inputs import features_of

from .shapes import TensorShapes
from .step_buffers import NUM_TURNS

_ITEMSIZE = 4  # float32


class FeatureRows:
    """Nothing is allocated for a decoder that takes no images. Pinned memory holds the rows of one call in each turn: a
    step of several calls with more of them waits for those before."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cuda, self._shapes = cuda, shapes
        self._used = 0  # rows of pinned memory that the step's copies read
        self._turns: list[HostBytes] = []
        self.addresses: Mapping[str, int] = {}
        if shapes.feature_size:
            num_bytes = shapes.feature_rows * shapes.feature_size * _ITEMSIZE
            self.addresses = {"image_features": memory.allocate("features", num_bytes)}
            self._turns = [memory.pinned(num_bytes) for _ in range(NUM_TURNS)]

    def begin_step(self) -> None:
        """Nobody reads this turn's pinned memory any more."""
        self._used = 0

    def upload(self, turn: int, spans: Sequence[Span]) -> None:
        """Enqueue the copy of the rows that the call of these spans reads, in the spans' order."""
        if all(span.features is None for span in spans):
            return
        rows = features_of(spans, self._shapes.feature_size)
        if self._used + len(rows) > self._shapes.feature_rows:
            self._cuda.synchronize()
            self._used = 0
        begin, source = self._used * rows[0].nbytes, self._turns[turn]
        source[begin : begin + rows.nbytes] = rows.view(np.uint8).reshape(-1)
        self._cuda.copy(self.addresses["image_features"], int(source.ctypes.data) + begin, rows.nbytes)
        self._used += len(rows)


def numbered(token_ids: TokenIds, first: int) -> tuple[TokenIds, int]:
    """The ids below 0 as the network knows them, of rows `first ...`; and the row after them."""
    is_of_image = token_ids < 0
    count = int(np.count_nonzero(is_of_image))
    if count:
        token_ids = token_ids.copy()
        token_ids[is_of_image] = -1 - np.arange(first, first + count, dtype=np.int32)
    return token_ids, first + count
