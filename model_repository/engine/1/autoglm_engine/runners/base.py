"""The seam between scheduling and computing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoglm_engine.core import Candidates, Logits, StepBatch


@dataclass(frozen=True, slots=True)
class Limits:
    num_slots: int
    max_length: int  # tokens a slot holds: prompt and completion
    prefill_chunk: int  # most tokens of one span
    vocab_size: int
    num_candidates: int = 0  # 0: a step gives whole logits; k: it gives `Candidates` with k a row
    step_tokens: int = 256  # most of a step, where the settings leave it to the runner
    on_gpu: bool = False  # a device computes the steps, and may hang
    max_logits_per_span: int = 1  # of a span's last tokens. More than 1 promises what verifying drafts needs: a token's
    # logits do not depend, to the bit, on how its sequence was cut into spans, nor on the others of the step
    feature_size: int = 0  # numbers of a row of `Span.features`; 0: it takes no images

    @property
    def has_images(self) -> bool:
        """Token ids below 0 stand for tokens of images."""
        return self.feature_size > 0

    @property
    def can_verify_drafts(self) -> bool:
        """A runner that gives candidates has adjusted one row of each slot for them."""
        return self.max_logits_per_span > 1 and not self.num_candidates


class Pending(Protocol):
    """A step that was issued."""

    def result(self) -> Logits | Candidates:
        """Wait for the step, once, and without the interpreter's lock: others publish meanwhile.

        Logits `[sum of the spans' num_logits, vocab_size]`, in the order of the spans and their tokens, or `Candidates`
        of the same rows where `limits.num_candidates` > 0. Valid until the next step is issued. Raises what the step
        failed with.
        """
        ...


class Runner(Protocol):
    """Computes steps over key/value slots that it allocates once. Not thread-safe: one thread calls it."""

    @property
    def limits(self) -> Limits: ...

    def issue(self, batch: StepBatch) -> Pending:
        """Begin a step, which writes each span's keys and values into its slot. A device works from here on while the
        caller goes on; a runner on the CPU may compute when the result is asked for. At most one step is pending: its
        result is taken before the next call of any method but `close`. The caller keeps the spans inside the limits (a
        span past its slot's end raises, here or in `result`) and their token ids unchanged until the result.
        """
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the keys and values of the first `length` tokens of slot `source` into slot `target`."""
        ...

    def close(self) -> None:
        """Also with a step pending, whose result nobody asks for any more."""
        ...


@dataclass(frozen=True, slots=True)
class Deferred:
    """The `Pending` of a runner on the CPU: the step is computed when its result is asked for."""

    forward: Callable[[StepBatch], Logits]
    batch: StepBatch

    def result(self) -> Logits:
        return self.forward(self.batch)


def run_step(runner: Runner, batch: StepBatch) -> Logits:
    """The unmodified logits `[num spans that want them, vocab_size]` of one step, whatever the runner tells of them."""
    found = runner.issue(batch).result()
    if not isinstance(found, Candidates):
        return found
    rows = [found.full_row(row) for row in range(len(found.token_ids))]
    return np.array(rows, np.float32).reshape(len(rows), runner.limits.vocab_size)
