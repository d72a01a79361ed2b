"""Which prompts share a call.

A call's rows are consecutive slots, since a slot's keys and values lie where its number says. What lies between two
prompts is idle and costs its share of the arithmetic; what a row lacks to the call's length is padding and costs
likewise. A call reads all weights, however few its tokens are: up to some 200 of them that is all that it costs (an
H200 computes 206 tokens of a 16-bit model while it reads the weights once: 989 TFLOP/s / 4.8 TB/s; an L40S 419). So
each call counts as its padded tokens or as 256 of them, whichever is more, and the calls are those that cost least
together: 32 prompts of 16 tokens in slots 0 ... 31 take 4 calls, where one by one they read the weights 32 times;
prompts of 128 tokens gain at most half, and longer ones nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoglm_engine.core import Span

from .shapes import TensorShapes

TOKENS_OF_A_PASS = 256  # which cost as much as one


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """One call. Its row i is slot `first_slot + i`; rows of slots that no span names are idle."""

    spans: tuple[Span, ...]
    first_slot: int
    num_rows: int
    num_tokens: int  # of each row, padding included

    @property
    def end(self) -> int:
        """The first position that no token of it sees."""
        return max(span.start + len(span.token_ids) for span in self.spans)

    @property
    def wants_logits(self) -> bool:
        return any(span.wants_logits for span in self.spans)

    @property
    def cost(self) -> int:
        return max(self.num_rows * self.num_tokens, TOKENS_OF_A_PASS)


def max_rows(num_slots: int) -> int:
    """Of all calls of a step: what their spans reach over are different slots, and no call has twice as many rows."""
    return 2 * num_slots


def batches_of(spans: Sequence[Span], shapes: TensorShapes) -> list[PrefillBatch]:
    """The cheapest calls, of those that cost the same the fewest, in the order of their slots; every span is in one."""
    ordered = sorted(spans, key=lambda span: span.slot)
    cheapest: list[tuple[int, list[PrefillBatch]]] = [(0, [])]  # [i]: of the first i spans
    for end in range(1, len(ordered) + 1):
        options = []
        for batch in _ending(ordered[:end], shapes):
            cost, before = cheapest[end - len(batch.spans)]
            options.append((cost + batch.cost, [*before, batch]))
        cheapest.append(min(options, key=lambda option: (option[0], len(option[1]))))
    return cheapest[-1][1]


def _ending(ordered: Sequence[Span], shapes: TensorShapes) -> Iterator[PrefillBatch]:
    """Calls of the last span alone, and with those before it as far as they fit."""
    last, longest = ordered[-1], 0
    yield _alone(last, shapes)
    for begin in range(len(ordered) - 1, -1, -1):
        num_slots = last.slot - ordered[begin].slot + 1
        longest = max(longest, len(ordered[begin].token_ids))
        if num_slots > shapes.batched_rows or longest > shapes.batched_length:
            return
        if num_slots > 1:
            yield _together(ordered[begin:], num_slots, shapes.padded(longest), shapes)


def _together(spans: Sequence[Span], num_slots: int, num_tokens: int, shapes: TensorShapes) -> PrefillBatch:
    """Of a power of two of rows, so that a runtime meets few shapes. Padding ends in the spare positions at the
    latest."""
    num_rows = min(1 << (num_slots - 1).bit_length(), shapes.batched_rows)
    first_slot = min(spans[0].slot, shapes.num_slots - num_rows)
    return PrefillBatch(tuple(spans), first_slot, num_rows, num_tokens)


def _alone(span: Span, shapes: TensorShapes) -> PrefillBatch:
    """At its exact length where padding would pass the cache's end."""
    count = len(span.token_ids)
    padded = shapes.padded(count)
    return PrefillBatch((span,), span.slot, 1, padded if span.start + padded <= shapes.cache_length else count)
