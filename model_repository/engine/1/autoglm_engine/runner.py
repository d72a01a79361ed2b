"""The seam between scheduling and computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .core import Logits, StepBatch


@dataclass(frozen=True, slots=True)
class Limits:
    num_slots: int
    max_length: int  # tokens a slot holds: prompt and completion
    prefill_chunk: int  # most tokens of one span
    vocab_size: int


class Runner(Protocol):
    """Computes steps over key/value slots that it allocates once. Not thread-safe: one thread calls it."""

    @property
    def limits(self) -> Limits: ...

    def forward(self, batch: StepBatch) -> Logits:
        """Write each span's keys and values into its slot and return logits `[num spans that want them, vocab_size]`
        in the order of the spans. The caller keeps the spans inside the limits; a span past its slot's end raises.
        The result is valid until the next call.
        """
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the keys and values of the first `length` tokens of slot `source` into slot `target`."""
        ...

    def close(self) -> None: ...
