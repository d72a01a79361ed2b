"""How many tokens are worth drafting: those whose chance to be right pays for their row of the step.

A step takes time in proportion to `fixed + rows`, where `fixed` is what it costs beside its rows (reading the weights),
as a number of rows. It yields `expected` tokens. One more row raises the yield a time exactly where the chance that its
draft is accepted is more than `expected / (fixed + rows)`, what a row's time yields already. A margin above that pays
for what the host does about a draft, and for the estimates. With one sequence the threshold is low, and even poor
drafts pay; with many at once it nears 1, and only near certain ones do: large batches turn drafting off by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .prompt_lookup import PromptLookup

FORCED_ACCEPTANCE = 0.97  # the sampler may spell what is forced with other tokens than the tokenizer would
_WEIGHT = 1 / 8  # of the newest judgement
_FIRST_ESTIMATE = 0.5
_MARGIN = 1.25


@dataclass(slots=True)
class Acceptance:
    """A sequence's chance that a drafted token, those before it being right, is right: a moving average of 0 and 1."""

    estimate: float = _FIRST_ESTIMATE

    def judge(self, *, was_right: bool) -> None:
        self.estimate += _WEIGHT * (was_right - self.estimate)


@dataclass(slots=True)
class Speculation:
    """Of one sequence that drafts tokens: where from, how many, and how often they were right. `most`: tokens drafted
    at a time. `always`: also where they do not pay. `expected`: the token that the lookup says comes next; -1: none. It
    is judged whether it was drafted or not, so that the estimate lives on while drafting is off. `is_forced`: the draft
    is what a guide leaves, which says nothing of the lookup."""

    lookup: PromptLookup
    most: int
    always: bool
    acceptance: Acceptance = field(default_factory=Acceptance)
    expected: int = -1
    is_forced: bool = False

    @property
    def estimate(self) -> float:
        """How likely a drafted token is right."""
        return FORCED_ACCEPTANCE if self.is_forced else self.acceptance.estimate

    def judge(self, first_taken: int, num_drafts: int, num_accepted: int) -> None:
        """After a step that took at least one token."""
        if self.is_forced:
            return
        if not num_drafts:
            if self.expected >= 0:
                self.acceptance.judge(was_right=first_taken == self.expected)
            return
        for place in range(min(num_accepted + 1, num_drafts)):
            self.acceptance.judge(was_right=place < num_accepted)


@dataclass(frozen=True, slots=True)
class Offer:
    """A sequence could have `most` tokens drafted, each right with a chance of `acceptance` if those before it are."""

    acceptance: float
    most: int
    always: bool = False  # whether it pays or not


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step has without drafts."""

    num_rows: int
    num_expected: float  # tokens that it yields
    fixed: float  # rows


def allot(offers: Sequence[Offer], work: StepWork, spare: int) -> list[int]:
    """How many tokens of each offer to draft, at most `spare` in all; the likeliest offers first."""
    counts = [0] * len(offers)
    rows, expected = work.num_rows, work.num_expected
    for place in sorted(range(len(offers)), key=lambda place: (not offers[place].always, -offers[place].acceptance)):
        offer, chance = offers[place], 1.0
        for _ in range(min(offer.most, spare)):
            chance *= offer.acceptance
            if not offer.always and chance * (work.fixed + rows) <= expected * _MARGIN:
                break
            counts[place] += 1
            rows, expected, spare = rows + 1, expected + chance, spare - 1
    return counts
