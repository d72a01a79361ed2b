"""What a step tells of its logits: the calls' candidates, copied back at once; whole rows stay on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .core import Logits, Span, TokenIds
from .cuda import Cuda
from .device_memory import DeviceMemory
from .step_buffers import Format, MirroredBlock, Views
from .tensor_shapes import TensorShapes

_FLOAT = 4  # bytes


@dataclass(frozen=True, slots=True)
class Row:
    """Where the logits of a span come from: the decode call, or `prefill_call` of the step."""

    slot: int
    prefill_call: int | None

    @classmethod
    def of_spans(cls, spans: Sequence[Span]) -> tuple[Row, ...]:
        """One for each span that wants logits, in their order. Prefill calls are counted over all spans."""
        calls = {span.slot: call for call, span in enumerate(span for span in spans if len(span.token_ids) > 1)}
        return tuple(cls(span.slot, calls.get(span.slot)) for span in spans if span.wants_logits)


class StepOutputs:
    """`turn`: which of the two copies in pinned memory. The logits of a slot are row `slot` of one table: a decode call
    writes its first rows, what they hold of idle slots is of no use; `keep_prefill_logits` follows and writes one row."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cuda = cuda
        self._num_candidates = shapes.num_candidates
        self._row_bytes = shapes.vocab_size * _FLOAT
        self._logits = memory.allocate("logits", shapes.num_slots * self._row_bytes)
        self._prefill_logits = memory.allocate("logits", self._row_bytes)  # aligned, which a table's row may not be
        self._fetched = memory.pinned(self._row_bytes)
        self._block = MirroredBlock(
            cuda,
            memory,
            decode=_formats(shapes.num_slots, shapes.num_candidates),
            prefill=_formats(1, shapes.num_candidates),
            num_prefill=shapes.num_slots,
        )

    @property
    def decode_addresses(self) -> dict[str, int]:
        return self._block.addresses(self._block.decode) | {"logits": self._logits}

    def prefill_addresses(self, call: int) -> dict[str, int]:
        return self._block.addresses(self._block.prefill[call]) | {"logits": self._prefill_logits}

    def keep_prefill_logits(self, slot: int) -> None:
        """Enqueue taking the last prefill call's logits as the slot's."""
        self._cuda.copy(self._logits + slot * self._row_bytes, self._prefill_logits, self._row_bytes)

    def download(self, turn: int, *, has_decode: bool, num_prefill: int) -> None:
        """Enqueue the copy of all candidates."""
        self._block.download(turn, has_decode, num_prefill)

    def candidates(self, turn: int, rows: Sequence[Row]) -> tuple[TokenIds, Logits, Logits]:
        """(token ids, logits, log-sum-exp) as in `core.Candidates`; the caller's own."""
        ids = np.empty((len(rows), self._num_candidates), np.int32)
        logits = np.empty((len(rows), self._num_candidates), np.float32)
        log_sum_exp = np.empty(len(rows), np.float32)
        for views, places, call_rows in self._sources(turn, rows):
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

    def _sources(self, turn: int, rows: Sequence[Row]) -> Iterator[tuple[Views, list[int], list[int]]]:
        """The outputs of each call, the places in the result that it fills, and from which of its rows."""
        decode = [place for place, row in enumerate(rows) if row.prefill_call is None]
        if decode:
            yield self._block.decode_views(turn), decode, [rows[place].slot for place in decode]
        for place, row in enumerate(rows):
            if row.prefill_call is not None:
                yield self._block.prefill_views(turn, row.prefill_call), [place], [0]


def _formats(rows: int, num_candidates: int) -> list[Format]:
    return [
        ("candidate_logits", np.float32, (rows, num_candidates)),
        ("candidate_ids", np.int32, (rows, num_candidates)),
        ("log_sum_exp", np.float32, (rows, 1)),
    ]
