"""Whether this GPU computes with an artifact's engine what the exporter's reference says: asked of a runner, at load.

TensorRT chooses kernels by GPU, driver, version and capacity, and some of its attention kernels have read what lies in
a cache beyond a row's length. So the slots' caches are filled, beyond each row's length with poison, and rows of length
1 to a full slot are computed alone, together, at the first slots and at the last, by decode and by prefill. Then the
whole model reads a text in a slot full of poison. What the runner's graphs and padding do is part of what is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoglm_engine.core import Candidates, Span, StepBatch
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.tensorrt.calls import buckets_of
from autoglm_engine.runners.tensorrt.kv_cache import KeyValueCache
from autoglm_engine.runners.tensorrt.shapes import TensorShapes

from .caches import DeviceCaches
from .reference import DeviceReference

Floats = npt.NDArray[np.float32]


class Issued(Protocol):
    def result(self) -> Candidates: ...


class CheckedRunner(Protocol):
    """What is used here of `TensorRTRunner`."""

    @property
    def limits(self) -> Limits: ...

    @property
    def key_values(self) -> KeyValueCache: ...

    def issue(self, batch: StepBatch) -> Issued: ...


@dataclass(slots=True)
class DeviceReport:
    """`worst_error`: relative L2 distance of the worst row from the reference, and which row that was."""

    bound: float
    max_missed: int
    num_places: int
    worst_error: float = 0.0
    worst_row: str = ""
    missed: list[int] = field(default_factory=list)  # places of the text with another likeliest token

    @property
    def failure(self) -> str | None:
        """Of a GPU that computes something else; None of one that does not."""
        if self.worst_row:
            return (
                f"attention is {self.worst_error:.2g} off in {self.worst_row}, where rounding explains {self.bound:g}"
            )
        if len(self.missed) > self.max_missed:
            return (
                f"{len(self.missed)} of {self.num_places} tokens of a text are not the reference's, the first at "
                f"place {self.missed[0]}"
            )
        return None

    def note(self, row: str, error: float) -> None:
        """The first row beyond the bound is the one that is told. NaN is beyond any."""
        is_beyond = not error <= self.bound
        if not self.worst_row:
            self.worst_error = error if is_beyond else max(error, self.worst_error)
            self.worst_row = row if is_beyond else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "worst_error": self.worst_error,
            "bound": self.bound,
            "equal_tokens": self.num_places - len(self.missed),
            "tokens": self.num_places,
        }


def check_device(runner: CheckedRunner, cuda: Cuda, shapes: TensorShapes, reference: DeviceReference) -> DeviceReport:
    """Computes on all slots, which must be free, and leaves their caches zeroed. Raises DeviceError where the GPU
    fails."""
    report = DeviceReport(reference.bound, reference.max_missed, len(reference.slack))
    caches = DeviceCaches(cuda, runner.key_values, shapes, reference.exponents)
    try:
        layer = LayerCheck(runner, caches, reference, report)
        for rows, slots in _placements(len(reference.lengths), shapes.num_slots):
            layer.decode(rows, slots)
            layer.prefill(rows, slots)
            if report.failure:
                return report
        _check_text(runner, caches, reference, report)
    finally:
        caches.close()
    return report


def _placements(num_rows: int, num_slots: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows and their slots: all together at the first slots, as far as there are slots; as many rows, at such slots,
    that each other decode call is run (`calls.buckets_of`), the last one at the last slots; then each row alone."""
    for first in range(0, num_rows, num_slots):
        rows = list(range(first, min(first + num_slots, num_rows)))
        yield rows, rows_at(0, len(rows))
        for bucket in buckets_of(num_slots):
            if 1 < bucket < len(rows):
                yield rows[-bucket:], rows_at(0, bucket)
            elif bucket >= 2 * len(rows) or len(rows) < bucket == num_slots:
                yield rows, rows_at(bucket - len(rows), len(rows))
    if num_slots > 1:
        yield from (([row], [0]) for row in range(num_rows))


def rows_at(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


class LayerCheck:
    """Computes rows of the reference in slots, and notes how far they are off."""

    def __init__(
        self, runner: CheckedRunner, caches: DeviceCaches, reference: DeviceReference, report: DeviceReport
    ) -> None:
        self._runner, self._caches, self._reference, self._report = runner, caches, reference, report
        self._has_next_layer = caches.num_layers > 1

    def decode(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        expected = [self._reference.decode[row, None] for row in rows]
        self._compute("decode", rows, slots, expected, [1] * len(rows))

    def prefill(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Rows of one token are decoded."""
        most = self._reference.token_ids.shape[1]
        long = [(row, slot) for row, slot in zip(rows, slots, strict=True) if self._length(row) > 1 < most]
        if not long:
            return
        counts = [min(self._length(row), most) for row, _ in long]
        expected = [self._reference.prefill[row][-count:] for (row, _), count in zip(long, counts, strict=True)]
        self._compute("prefill", [row for row, _ in long], [slot for _, slot in long], expected, counts)

    def _length(self, row: int) -> int:
        return self._reference.lengths[row]

    def _compute(
        self, kind: str, rows: Sequence[int], slots: Sequence[int], expected: Sequence[Floats], counts: Sequence[int]
    ) -> None:
        """Twice: a query gives a poisoned key of one sign a score far below all others, and then no weight; that of the
        other sign gets all of it."""
        spans = [
            Span(slot, self._length(row) - count, self._reference.token_ids[row, -count:], True)
            for row, slot, count in zip(rows, slots, counts, strict=True)
        ]
        for negated in (False, True):
            for span in spans:
                self._caches.fill(span.slot, span.start, negated=negated)
            self._compare(kind, spans, expected)

    def _compare(self, kind: str, spans: Sequence[Span], expected: Sequence[Floats]) -> None:
        found = self._runner.issue(StepBatch(tuple(spans))).result()
        for index, (span, wanted) in enumerate(zip(spans, expected, strict=True)):
            actual = self._written(span) if self._has_next_layer else found.full_row(index)[None]
            name = f"{kind} of {span.start + len(span.token_ids):,} tokens in slot {span.slot}"
            company = f"{name}, {len(spans)} rows together" if len(spans) > 1 else name
            self._report.note(company, _worst(actual, wanted))

    def _written(self, span: Span) -> Floats:
        return self._caches.read(span.slot, 1, span.start, len(span.token_ids))


def _worst(actual: Floats, expected: Floats) -> float:
    """Relative L2 distance of the row that is furthest off; NaN where there is one."""
    with np.errstate(all="ignore"):
        distance = np.linalg.norm(actual.astype(np.float64) - expected, axis=1)
    return float(np.max(distance / np.linalg.norm(expected.astype(np.float64), axis=1)))


def _check_text(runner: CheckedRunner, caches: DeviceCaches, reference: DeviceReference, report: DeviceReport) -> None:
    """The text up to its places in chunks, then token by token: so both profiles have a part in it."""
    text, places = reference.text, len(reference.slack)
    first, chunk = len(text) - places, runner.limits.prefill_chunk
    caches.fill(0, 0)
    for start in range(0, first, chunk):
        part = text[start : min(start + chunk, first)]
        runner.issue(StepBatch((Span(0, start, part, wants_logits=False),))).result()
    for place in range(places):
        start = first + place
        found = runner.issue(StepBatch((Span(0, start, text[start : start + 1], True),))).result()
        if not _is_likely(int(found.token_ids[0, 0]), float(found.logits[0, 0]), reference, place):
            report.missed.append(place)


def _is_likely(token: int, logit: float, reference: DeviceReference, place: int) -> bool:
    """The reference's likeliest, or one so near to it that rounding may exchange them."""
    ids, logits = reference.likely_ids[place], reference.likely_logits[place]
    near = logits >= logits[0] - reference.slack[place]
    return bool(np.isfinite(logit)) and token in ids[near].tolist()
