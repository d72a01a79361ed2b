"""What the next step computes: ask (`plan`), then act.

There is no prefill phase and no decode phase: each sequence has `num_computed` and `num_tokens`, and a step lets the
first catch up with the second, within a token budget. First come the sequences that lack one token (a decode step,
so that running streams never stall), then prompts in the order of their admission, in chunks, then waiting requests,
whom an admission policy chooses. What is left of the budget may go to drafts. A request is admitted when it can begin
at once, so that its prefix is looked up as late as possible, when those before it have left theirs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from autoglm_engine.core import Span, StepBatch
from autoglm_engine.engine.drafter import Drafter
from autoglm_engine.errors import EngineError
from autoglm_engine.own_failures import own_failure
from autoglm_engine.runners.base import Limits

from .admission import AdmissionPolicy, Fifo
from .sequence import Sequence, Waiting
from .slots import Allocation, Copy, SlotTable

_log = logging.getLogger(__name__)
Admit = Callable[[Waiting, Allocation], Sequence]


@dataclass(slots=True)
class StepPlan:
    """`copies` come before the batch, also where there is none; `sequences[i]` owns `spans[i]`. What one sequence
    raised while it was planned for is in `failed`, and who could not be admitted in `refused`: both are to be
    answered."""

    copies: list[Copy] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    failed: list[tuple[Sequence, EngineError]] = field(default_factory=list)
    refused: list[tuple[Waiting, EngineError]] = field(default_factory=list)

    @property
    def batch(self) -> StepBatch:
        return StepBatch(tuple(self.spans))

    @property
    def sampling(self) -> list[tuple[Sequence, Span]]:
        """Those that get logits, in the order of their rows."""
        return [pair for pair in zip(self.sequences, self.spans, strict=True) if pair[1].wants_logits]


class Scheduler:
    """Owns the queue (in the order of arrival), the running sequences (in the order of admission) and their slots. One
    thread uses it. `policy`: first come, first served, where it is None."""

    def __init__(
        self,
        limits: Limits,
        slots: SlotTable,
        token_budget: int,
        policy: AdmissionPolicy | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.waiting: deque[Waiting] = deque()
        self.running: list[Sequence] = []
        self.slots = slots
        self._policy = policy or Fifo()
        self._drafter = drafter
        self._chunk = limits.prefill_chunk
        self._ranks_on_device = limits.num_candidates > 0
        self._budget = max(token_budget, limits.num_slots)  # a decode step of all slots always fits

    def plan(self, admit: Admit, now: float) -> StepPlan:
        """Decide the next step, while none is in flight; it must be issued, since adjustments are told once. Admitted
        requests leave the queue and get their slot here; `admit` makes the sequence of a request and the slot it was
        given.
        """
        plan = StepPlan()
        budget = self._budget
        for sequence in self.running:
            if sequence.num_missing == 1:
                budget -= self._add(plan, sequence, 1)
        for sequence in self.running:
            if sequence.num_missing > 1 and budget > 0:
                budget -= self._add(plan, sequence, budget)
        ready = self._ready() if self.waiting and self.slots.can_allocate else deque()
        while budget > 0 and ready and self.slots.can_allocate:
            chosen = self._choose(ready, now)
            if chosen is None:
                break
            waiting = ready[chosen]
            del ready[chosen]
            if (admitted := self._admit(plan, waiting, admit)) is not None:
                budget -= self._add(plan, admitted, budget)
        if self._drafter:
            plan.failed += self._drafter.extend(plan.spans, plan.sequences, budget)
        return plan

    def computed(self, plan: StepPlan) -> None:
        """The plan's spans are in their slots; drafts do not count yet. What finished since the plan does not count its
        last span: the slot is no longer its own."""
        for span, sequence in zip(plan.spans, plan.sequences, strict=True):
            if sequence.is_running:
                self._advance(sequence, len(span.token_ids) - span.num_drafts)

    def accepted(self, sequence: Sequence) -> None:
        """The token taken last was drafted: its keys and values are in the slot."""
        self._advance(sequence, 1)

    def finish(self, sequence: Sequence, *, retain: bool = True) -> None:
        """Take its slot. A span of it may be in flight: that writes past what the slot keeps, and before whatever is
        planned for the slot from now on."""
        sequence.is_running = False
        self.slots.release(sequence.slot, retain=retain)
        self.running.remove(sequence)
        if sequence.images:
            sequence.images.release()

    def clear(self) -> None:
        """Forget everything."""
        for sequence in self.running:
            if sequence.images:
                sequence.images.release()
        self.waiting.clear()
        self.running.clear()
        self.slots.reset()

    def _advance(self, sequence: Sequence, count: int) -> None:
        sequence.num_computed += count
        self.slots.advance(sequence.slot, sequence.num_computed)

    def _ready(self) -> deque[Waiting]:
        """Who may be admitted, in the order of arrival."""
        return deque(waiting for waiting in self.waiting if waiting.is_ready)

    def _choose(self, ready: deque[Waiting], now: float) -> int | None:
        """A policy looks at what requests say of themselves; where it trips over that, the oldest goes first."""
        try:
            return self._policy.choose(ready, self.running, now)
        except Exception as error:
            _log.error("the admission policy failed", exc_info=error)
            return 0

    def _admit(self, plan: StepPlan, waiting: Waiting, admit: Admit) -> Sequence | None:
        """None where its own options, guide or text stand in the way: then its slot is free again, and holds nothing.
        Also where a slot was overwritten that held one of its images: it stays in the queue."""
        tokens, tenant = waiting.tokens, waiting.request.tenant
        if waiting.images and not waiting.images.may_begin(self.slots.num_reusable(tokens, tenant)):
            return None
        allocation = self.slots.allocate(tokens, tenant)
        plan.copies += allocation.copies
        try:
            sequence = admit(waiting, allocation)
        except BaseException as error:
            plan.refused.append((waiting, own_failure(error, waiting.request.id)))
            self.slots.release(allocation.slot, retain=False)
            self.waiting.remove(waiting)
            return None
        self.running.append(sequence)
        self.waiting.remove(waiting)
        plan.admitted.append(sequence)
        return sequence

    def _add(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        """The number of tokens that the sequence's span takes."""
        try:
            span = self._span(sequence, budget)
        except BaseException as error:
            plan.failed.append((sequence, own_failure(error, sequence.request.id)))
            return 0
        plan.spans.append(span)
        plan.sequences.append(sequence)
        return len(span.token_ids)

    def _span(self, sequence: Sequence, budget: int) -> Span:
        start = sequence.num_computed
        count = min(sequence.num_missing, self._chunk, budget)
        wants_logits = count == sequence.num_missing
        images = sequence.images
        return Span(
            slot=sequence.slot,
            start=start,
            token_ids=sequence.tokens[start : start + count],
            wants_logits=wants_logits,
            adjustments=sequence.sampler.take_adjustments() if wants_logits and self._ranks_on_device else None,
            positions=images.positions(start, count) if images else None,
            features=images.take_features(start, count) if images else None,
        )
