"""How each slot's logits are adjusted, as the device keeps it: a row of factors and a row of offsets a slot.

The two tables are one block, so that one strided copy changes a factor and its offset. What changes is staged in pinned
rows that are lent in turns; a slot that nothing was told of since its last reset costs no copy at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Adjustments, Span
from autoglm_engine.runners.cuda.api import Cuda, Event
from autoglm_engine.runners.cuda.memory import DeviceMemory, aligned

from .shapes import TensorShapes

_FLOAT = 4  # bytes
_FACTOR_AND_OFFSET = 2
_NUM_STAGED_ROWS = 4
MAX_SINGLE_WRITES = 32  # of a slot that is reset: each is a copy of its own; beyond, a whole row is built and copied

Told = tuple[int, Adjustments]  # slot, what to change


class LogitState:
    """`inverse_temperatures`: float32 `[num_slots]`, on the host."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cuda = cuda
        self._row = shapes.vocab_size * _FLOAT
        self._table = aligned(shapes.num_slots * self._row)
        self._factors = memory.allocate("logits", _FACTOR_AND_OFFSET * self._table)
        self._pitch = aligned(self._row)  # of the two rows that are staged
        self._neutral = memory.allocate("logits", _FACTOR_AND_OFFSET * self._pitch)
        self._gathered_rows = shapes.batched_rows
        self._gathered_table = aligned(shapes.batched_rows * self._row)
        self._gathered = memory.allocate("logits", _FACTOR_AND_OFFSET * self._gathered_table)
        self._staging = RowStaging(cuda, memory, self._pitch, shapes.vocab_size)
        self._is_neutral = np.zeros(shapes.num_slots, np.bool_)
        self.inverse_temperatures = np.ones(shapes.num_slots, np.float32)
        self._initialise()

    @property
    def addresses(self) -> dict[str, int]:
        """Of a call whose rows are slots 0 and on."""
        return {"logit_factor": self._factors, "logit_offset": self._factors + self._table}

    @property
    def gathered_addresses(self) -> dict[str, int]:
        """Of a call of the slots that were gathered last."""
        return {"logit_factor": self._gathered, "logit_offset": self._gathered + self._gathered_table}

    def gather(self, first_slot: int, num_rows: int) -> None:
        """Enqueue copying the rows of these slots to where a prefill call reads them: rows of odd lengths are not
        aligned."""
        source, width = self._factors + first_slot * self._row, num_rows * self._row
        self._copy_rows(self._gathered, self._gathered_table, source, self._table, width)

    def apply(self, spans: Iterable[Span]) -> None:
        """Enqueue what the spans tell."""
        singles: list[Told] = []
        for span in spans:
            if (told := span.adjustments) is None:
                continue
            self.inverse_temperatures[span.slot] = told.inverse_temperature
            if told.reset and len(told.token_ids) > MAX_SINGLE_WRITES:
                self._write_row(span.slot, told)
                continue
            if told.reset:
                self._neutralise(span.slot)
            if len(told.token_ids):
                singles.append((span.slot, told))
        for group in _groups(singles, self._staging.num_columns):
            self._write_singles(group)

    def _initialise(self) -> None:
        with self._staging.lend() as staged:
            staged.values[0], staged.values[1] = 1, 0
            self._copy_rows(self._neutral, self._pitch, staged.address, self._pitch, self._row)
        for slot in range(len(self._is_neutral)):
            self._neutralise(slot)
        for row in range(self._gathered_rows):
            target = self._gathered + row * self._row
            self._copy_rows(target, self._gathered_table, self._neutral, self._pitch, self._row)

    def _neutralise(self, slot: int) -> None:
        if not self._is_neutral[slot]:
            self._copy_rows(self._factors + slot * self._row, self._table, self._neutral, self._pitch, self._row)
            self._is_neutral[slot] = True

    def _write_row(self, slot: int, told: Adjustments) -> None:
        with self._staging.lend() as staged:
            factors, offsets = staged.values
            factors[:], offsets[:] = 1, 0
            factors[told.token_ids], offsets[told.token_ids] = told.factors, told.offsets
            self._copy_rows(self._factors + slot * self._row, self._table, staged.address, self._pitch, self._row)
        self._is_neutral[slot] = False

    def _write_singles(self, group: Sequence[Told]) -> None:
        with self._staging.lend() as staged:
            column = 0
            for slot, told in group:
                end = column + len(told.token_ids)
                staged.values[0, column:end], staged.values[1, column:end] = told.factors, told.offsets
                for token_id in told.token_ids.tolist():
                    target = self._factors + slot * self._row + token_id * _FLOAT
                    self._copy_rows(target, self._table, staged.address + column * _FLOAT, self._pitch, _FLOAT)
                    column += 1
                self._is_neutral[slot] = False

    def _copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int) -> None:
        self._cuda.copy_rows(target, target_pitch, source, source_pitch, width, _FACTOR_AND_OFFSET)


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Pinned: a row of factors and a row of offsets."""

    address: int
    values: npt.NDArray[np.float32]  # [2, num_columns]
    event: Event


class RowStaging:
    """Pinned rows, lent in turns; before one is lent again, what was enqueued while it was lent has run."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, pitch: int, num_columns: int) -> None:
        self._cuda = cuda
        self._next = 0
        self._rows = [self._staged(memory, pitch, num_columns) for _ in range(_NUM_STAGED_ROWS)]
        self.num_columns = num_columns

    @contextmanager
    def lend(self) -> Iterator[StagedRows]:
        rows = self._rows[self._next]
        self._next = (self._next + 1) % len(self._rows)
        self._cuda.wait(rows.event)
        yield rows
        self._cuda.record(rows.event)

    def _staged(self, memory: DeviceMemory, pitch: int, num_columns: int) -> StagedRows:
        host = memory.pinned(_FACTOR_AND_OFFSET * pitch)
        values = host.view(np.float32).reshape(_FACTOR_AND_OFFSET, -1)[:, :num_columns]
        return StagedRows(int(host.ctypes.data), values, memory.event())


def _groups(singles: Sequence[Told], capacity: int) -> Iterator[list[Told]]:
    """Of at most `capacity` tokens; one slot's never exceed it."""
    group: list[Told] = []
    num_tokens = 0
    for slot, told in singles:
        if group and num_tokens + len(told.token_ids) > capacity:
            yield group
            group, num_tokens = [], 0
        group.append((slot, told))
        num_tokens += len(told.token_ids)
    if group:
        yield group
