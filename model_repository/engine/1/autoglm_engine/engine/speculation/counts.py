"""Of one sequence that drafts tokens: where from, how many, and how often they were right."""

from __future__ import annotations

from dataclasses import dataclass, field

from .policy import Acceptance
from .prompt_lookup import PromptLookup

FORCED_ACCEPTANCE = 0.97  # the sampler may spell what is forced with other tokens than the tokenizer would


@dataclass(slots=True)
class Speculation:
    """`most`: tokens drafted at a time. `always`: also where they do not pay. `expected`: the token that the lookup
    says comes next; -1: none. It is judged whether it was drafted or not, so that the estimate lives on while drafting
    is off. `is_forced`: the draft is what a guide leaves, which says nothing of the lookup."""

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
