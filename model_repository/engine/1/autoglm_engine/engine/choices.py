"""From the rows of a step to tokens: of each sequence the first, and then those that its drafts guessed right, plus
one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autoglm_engine.core import Candidates, Logits
from autoglm_engine.engine.scheduler import StepPlan
from autoglm_engine.engine.sequence import Sequence
from autoglm_engine.sampling.sampler import Sampled, sample_alone, sample_batch


@dataclass(frozen=True, slots=True)
class Choices:
    """What the sequence's sampler chooses at its places of the step, one after the other: each choice is made when
    those before it were taken, since they count for penalties and bans. `first` is the choice at the place before the
    drafts."""

    sequence: Sequence
    first: Sampled
    drafts: tuple[int, ...] = ()
    rows: Logits | None = None  # [1 + num_drafts, vocab_size] where there are drafts

    def take(self, take: Callable[[Sampled], None], accepted: Callable[[], None]) -> int:
        """Call `take` with each token, and `accepted` after one that was drafted, if the sequence goes on; how many
        were."""
        take(self.first)
        sampled = self.first
        for place, draft in enumerate(self.drafts):
            assert self.rows is not None, "drafts without their logits"
            if not self.sequence.is_running or sampled.token_id != draft:
                return place
            accepted()
            sampled = sample_alone(self.sequence.sampler, self.rows[place + 1])
            take(sampled)
        return len(self.drafts)


def choose(found: Logits | Candidates, plan: StepPlan) -> list[Choices]:
    """Of each sequence that gets logits, in order."""
    sampling = plan.sampling
    samplers = [sequence.sampler for sequence, _ in sampling]
    if isinstance(found, Candidates) or not any(span.num_drafts for _, span in sampling):
        chosen = sample_batch(found, samplers)
        return [Choices(sequence, first) for (sequence, _), first in zip(sampling, chosen, strict=True)]
    made, row = [], 0
    for sequence, span in sampling:
        rows = found[row : row + span.num_logits]
        drafts = tuple(span.token_ids[len(span.token_ids) - span.num_drafts :].tolist())
        made.append(Choices(sequence, sample_alone(sequence.sampler, rows[0]), drafts, rows))
        row += span.num_logits
    return made
