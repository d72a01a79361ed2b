"""The small inputs of a step's calls, written into pinned memory and copied to the device at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Span
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory
from autoglm_engine.runners.image_inputs import positions_of

from .features import numbered
from .prefill_batches import PrefillBatch, max_rows
from .shapes import TensorShapes
from .step_buffers import Format, MirroredBlock, Region, Views


class StepInputs:
    """`turn`: which of the two copies in pinned memory. A region holds what is one call's own: `decode`, or what
    `prefill` gives for the calls of one step."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cache_length, self._has_images = shapes.cache_length, bool(shapes.feature_size)
        self._block = MirroredBlock(
            cuda,
            memory,
            decode=self._formats(shapes.num_slots, 1),
            prefill_row=self._formats(1, shapes.prefill_chunk),
            max_rows=max_rows(shapes.num_slots),
        )
        self._key_positions = _uploaded(cuda, memory, np.arange(shapes.cache_length, dtype=np.int32))

    @property
    def decode(self) -> Region:
        return self._block.decode

    def prefill(self, batches: Sequence[PrefillBatch]) -> list[Region]:
        return self._block.prefill(self._formats(batch.num_rows, batch.num_tokens) for batch in batches)

    def addresses(self, region: Region) -> dict[str, int]:
        """Of all inputs but the cache, the logits' adjustments and images' features. A call that reads fewer positions
        reads the begin of `key_positions`."""
        return self._block.addresses(region) | {"key_positions": self._key_positions}

    def stage_idle(self, turn: int, region: Region, num_rows: int) -> None:
        """No row of the call is of use to anybody."""
        self._idle(self._block.views(turn, region), num_rows)

    def stage_decode(
        self, turn: int, bucket: int, spans: Sequence[Span], inverse_temperatures: npt.NDArray[np.float32]
    ) -> None:
        """Spans of one token, on idle rows. `inverse_temperatures`: of all slots."""
        views = self._block.decode_views(turn)
        self._idle(views, bucket)
        slots = np.array([span.slot for span in spans], np.intp)
        starts = np.array([span.start for span in spans], np.int32)
        token_ids = np.array([span.token_ids[0] for span in spans], np.int32)
        views["token_ids"][slots, 0], _ = numbered(token_ids, 0)
        views["position_ids"][slots, 0] = starts
        views["write_indices"][slots] = starts
        views["inverse_temperature"][slots, 0] = inverse_temperatures[slots]
        if self._has_images:
            views["rope_positions"][slots, :, 0] = positions_of(spans).T

    def stage_prefill(
        self, turn: int, region: Region, batch: PrefillBatch, inverse_temperatures: npt.NDArray[np.float32]
    ) -> None:
        """Padding at a row's end goes on with its positions: what it writes is overwritten before any token sees it."""
        views = self._block.views(turn, region)
        self._idle(views, batch.num_rows)
        num_features = 0
        for span in batch.spans:
            row, count = span.slot - batch.first_slot, len(span.token_ids)
            views["token_ids"][row, :count], num_features = numbered(span.token_ids, num_features)
            views["position_ids"][row] = np.arange(span.start, span.start + batch.num_tokens)
            views["write_indices"][row] = span.start
            views["logit_indices"][row] = count - 1
            views["inverse_temperature"][row] = inverse_temperatures[span.slot]
            if self._has_images:
                views["rope_positions"][row, :, :count] = positions_of([span])

    def upload(self, turn: int, regions: Sequence[Region]) -> None:
        """Enqueue the copy of these, which are the step's."""
        self._block.upload(turn, regions)

    def _idle(self, views: Views, num_rows: int) -> None:
        """Rows that write to the spare positions at the end of their slots, which are never read."""
        num_tokens = views["token_ids"].shape[1]
        views["token_ids"][:num_rows] = 0
        views["position_ids"][:num_rows] = 0
        views["write_indices"][:num_rows] = self._cache_length - num_tokens
        views["logit_indices"][:num_rows] = 0
        views["inverse_temperature"][:num_rows] = 1
        if self._has_images:
            views["rope_positions"][:num_rows] = 0

    def _formats(self, rows: int, tokens: int) -> list[Format]:
        of_images: list[Format] = [("rope_positions", np.int32, (rows, 3, tokens))]
        return [
            ("token_ids", np.int32, (rows, tokens)),
            ("position_ids", np.int32, (rows, tokens)),
            ("write_indices", np.int32, (rows,)),
            ("logit_indices", np.int32, (rows, 1)),  # stays 0 for decode
            ("inverse_temperature", np.float32, (rows, 1)),
            *(of_images if self._has_images else []),
        ]


def _uploaded(cuda: Cuda, memory: DeviceMemory, values: npt.NDArray[np.int32]) -> int:
    """The address on the device of a copy of `values`."""
    address, host = memory.allocate("step", values.nbytes), memory.pinned(values.nbytes)
    host[: values.nbytes] = values.view(np.uint8)
    cuda.copy(address, int(host.ctypes.data), values.nbytes)
    return address
