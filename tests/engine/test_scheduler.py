"""What a step computes, as tables: who gets how many tokens, in which order."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.engine.scheduler import Scheduler, StepPlan
from autoglm_engine.engine.sequence import Sequence, Waiting
from autoglm_engine.engine.slots import Allocation, SlotTable
from autoglm_engine.runners.base import Limits

from tests.support.engine.fakes import letters_text, request

CHUNK = 8


def make_sequence(scheduler: Scheduler, waiting: Waiting, allocation: Allocation) -> Sequence:
    from autoglm_engine.sampling.sampler import TokenSampler
    from autoglm_engine.tokenizer.output import Output

    prompt = waiting.request.prompt_ids
    tokens = scheduler.slots.tokens[allocation.slot]
    tokens[: len(prompt)] = prompt
    reused = allocation.num_reused
    sampler = TokenSampler(waiting.request.sampling, prompt, (), 8)
    output = Output(letters_text(), ())
    return Sequence(
        waiting.request, 0.0, allocation.slot, tokens, len(prompt), reused, reused, 8, sampler, output, 0.0, 0.0
    )


def plan(scheduler: Scheduler) -> StepPlan:
    made = scheduler.plan(lambda waiting, allocation: make_sequence(scheduler, waiting, allocation), 0.0)
    scheduler.computed(made)
    return made


def grow(made: StepPlan) -> None:
    """Give every sequence that is caught up its next token."""
    for sequence in made.sequences:
        if not sequence.num_missing:
            sequence.tokens[sequence.num_tokens] = 9
            sequence.num_tokens += 1


def scheduler_with(num_slots: int, budget: int, prompt_lens: list[int]) -> Scheduler:
    limits = Limits(num_slots, 64, CHUNK, 100)
    scheduler = Scheduler(limits, SlotTable(num_slots, 64), budget)
    for i, length in enumerate(prompt_lens):
        prompt = (np.arange(length) + 50 * i).tolist()
        scheduler.waiting.append(Waiting(request(f"r{i}", prompt), 0.0, 0.0))
    return scheduler


def shape(made: StepPlan) -> list[tuple[str, int, int, bool]]:
    """(request, start, tokens, wants logits) a span."""
    return [
        (sequence.request.id, span.start, len(span.token_ids), span.wants_logits)
        for sequence, span in zip(made.sequences, made.spans, strict=True)
    ]


@pytest.mark.parametrize(
    ("num_slots", "budget", "prompt_lens", "steps"),
    [
        pytest.param(2, 32, [], [[]], id="nothing to do"),
        pytest.param(
            2,
            32,
            [3, 5],
            [[("r0", 0, 3, True), ("r1", 0, 5, True)], [("r0", 3, 1, True), ("r1", 5, 1, True)]],
            id="short prompts are one span each",
        ),
        pytest.param(
            1,
            32,
            [20],
            [[("r0", 0, 8, False)], [("r0", 8, 8, False)], [("r0", 16, 4, True)], [("r0", 20, 1, True)]],
            id="a long prompt goes in chunks, logits of the last only",
        ),
        pytest.param(
            2,
            10,
            [3, 12],
            [
                [("r0", 0, 3, True), ("r1", 0, 7, False)],
                [("r0", 3, 1, True), ("r1", 7, 5, True)],
                [("r0", 4, 1, True), ("r1", 12, 1, True)],
            ],
            id="decode first, prefill gets what is left",
        ),
        pytest.param(
            3,
            6,
            [8, 8, 2],
            [
                [("r0", 0, 6, False)],
                [("r0", 6, 2, True), ("r1", 0, 4, False)],
                [("r0", 8, 1, True), ("r1", 4, 4, True), ("r2", 0, 1, False)],
                [("r0", 9, 1, True), ("r2", 1, 1, True), ("r1", 8, 1, True)],
            ],
            id="first come, first served",
        ),
        pytest.param(1, 32, [2, 2], [[("r0", 0, 2, True)], [("r0", 2, 1, True)]], id="no slot, no admission"),
        pytest.param(
            4,
            1,
            [1, 1, 1, 1],
            [[(f"r{i}", 0, 1, True) for i in range(4)], [(f"r{i}", 1, 1, True) for i in range(4)]],
            id="a budget below the slots counts as the slots",
        ),
    ],
)
def test_steps(
    num_slots: int, budget: int, prompt_lens: list[int], steps: list[list[tuple[str, int, int, bool]]]
) -> None:
    scheduler = scheduler_with(num_slots, budget, prompt_lens)
    for number, expected in enumerate(steps):
        made = plan(scheduler)
        grow(made)
        assert sorted(shape(made)) == sorted(expected), f"step {number}"


def test_decode_spans_stand_before_prefill_spans() -> None:
    scheduler = scheduler_with(2, 10, [12, 3])
    grow(plan(scheduler))  # r0 is in its prompt, r1 has begun
    first = plan(scheduler)
    grow(first)
    assert [span.wants_logits for span in first.spans] == sorted(
        (len(span.token_ids) == 1 or span.wants_logits for span in first.spans), reverse=True
    )


def test_the_second_of_two_equal_prompts_starts_from_the_first_ones_prefix() -> None:
    scheduler = scheduler_with(2, 4, [])
    prompt = list(range(40))
    scheduler.waiting.extend(Waiting(request(name, prompt), 0.0, 0.0) for name in ("a", "b"))
    for _ in range(20):
        made = plan(scheduler)
        if len(made.admitted) and made.admitted[0].request.id == "b":
            assert made.admitted[0].num_cached == 39
            assert [copy.length for copy in made.copies] == [39]
            return
        grow(made)
    pytest.fail("b was never admitted")


def test_a_finished_slot_can_be_given_again() -> None:
    scheduler = scheduler_with(1, 32, [2, 2])
    first = plan(scheduler)
    scheduler.finish(first.sequences[0])
    second = plan(scheduler)
    assert [sequence.request.id for sequence in second.admitted] == ["r1"]
    assert not scheduler.waiting
