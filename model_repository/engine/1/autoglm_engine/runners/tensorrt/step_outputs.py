"""What a step tells of its logits: the calls' candidates, copied back at once; whole rows stay on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Logits, Span, TokenIds
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory

from .prefill_batches import PrefillBatch, max_rows
from .shapes import TensorShapes
from .step_buffers import Format, MirroredBlock, Region

_FLOAT = 4  # bytes


@dataclass(frozen=True, slots=True)
class Row:
    """Where the logits of a span come from: row `number` of the call that writes to `region`."""

    slot: int
    region: Region
    number: int


class StepOutputs:
    """`turn`: which of the two copies in pinned memory. A region holds one call's candidates: `decode`, or what
    `prefill` gives for the calls of one step.

    The logits of a slot are row `slot` of one table: a decode call writes its first rows, what they hold of idle slots
    is of no use; `keep_prefill_logits` follows and writes one row."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cuda = cuda
        self._num_candidates = shapes.num_candidates
        self._row_bytes = shapes.vocab_size * _FLOAT
        self._logits = memory.allocate("logits", shapes.num_slots * self._row_bytes)
        self._prefill_logits = memory.allocate("logits", shapes.batched_rows * self._row_bytes)
        self._fetched = memory.pinned(self._row_bytes)
        self._block = MirroredBlock(
            cuda,
            memory,
            decode=_formats(shapes.num_slots, shapes.num_candidates),
            prefill_row=_formats(1, shapes.num_candidates),
            max_rows=max_rows(shapes.num_slots),
        )

    @property
    def decode(self) -> Region:
        return self._block.decode

    def prefill(self, batches: Sequence[PrefillBatch]) -> list[Region]:
        return self._block.prefill(_formats(batch.num_rows, self._num_candidates) for batch in batches)

    @property
    def decode_addresses(self) -> dict[str, int]:
        return self._block.addresses(self._block.decode) | {"logits": self._logits}

    def prefill_addresses(self, region: Region) -> dict[str, int]:
        """Whole rows go to memory of their own: a call's rows are also those of slots between its prompts, and a row of
        the table may not be aligned."""
        return self._block.addresses(region) | {"logits": self._prefill_logits}

    def keep_prefill_logits(self, batch: PrefillBatch) -> None:
        """Enqueue taking the last prefill call's rows as those of its slots."""
        for span in batch.spans:
            if span.wants_logits:
                source = self._prefill_logits + (span.slot - batch.first_slot) * self._row_bytes
                self._cuda.copy(self._logits + span.slot * self._row_bytes, source, self._row_bytes)

    def download(self, turn: int, regions: Sequence[Region]) -> None:
        """Enqueue the copy of all candidates in these, which are the step's."""
        self._block.download(turn, regions)

    def candidates(self, turn: int, rows: Sequence[Row]) -> tuple[TokenIds, Logits, Logits]:
        """(token ids, logits, log-sum-exp) as in `core.Candidates`; the caller's own."""
        ids = np.empty((len(rows), self._num_candidates), np.int32)
        logits = np.empty((len(rows), self._num_candidates), np.float32)
        log_sum_exp = np.empty(len(rows), np.float32)
        for region, places in _by_region(rows):
            views = self._block.decode_views(turn) if region is self.decode else self._block.views(turn, region)
            call_rows = [rows[place].number for place in places]
            ids[places] = views["candidate_ids"][call_rows]
            logits[places] = views["candidate_logits"][call_rows]
            log_sum_exp[places] = views["log_sum_exp"][call_rows, 0]
        return ids, logits, log_sum_exp

    def fetch(self, slot: int) -> Logits:
        """Wait for the slot's whole row; the caller's own."""
        self._cuda.copy(int(self._fetched.ctypes.data), self._logits + slot * self._row_bytes, self._row_bytes)
        self._cuda.synchronize()
        values: npt.NDArray[np.float32] = self._fetched[: self._row_bytes].view(np.float32)
        return values.copy()


def rows_of(
    spans: Sequence[Span], decode: Region, batches: Sequence[PrefillBatch], regions: Sequence[Region]
) -> tuple[Row, ...]:
    """One for each span that wants logits, in their order. `regions`: of the batches."""
    prefilled = {
        span.slot: Row(span.slot, region, span.slot - batch.first_slot)
        for batch, region in zip(batches, regions, strict=True)
        for span in batch.spans
    }
    return tuple(prefilled.get(span.slot) or Row(span.slot, decode, span.slot) for span in spans if span.wants_logits)


def _by_region(rows: Sequence[Row]) -> Iterator[tuple[Region, list[int]]]:
    """Each region that has rows, and their places."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.region.begin, []).append(place)
    for found in places.values():
        yield rows[found[0]].region, found


def _formats(rows: int, num_candidates: int) -> list[Format]:
    return [
        ("candidate_logits", np.float32, (rows, num_candidates)),
        ("candidate_ids", np.int32, (rows, num_candidates)),
        ("log_sum_exp", np.float32, (rows, 1)),
    ]
