"""In a batch on the GPU, each sequence gets what it would get alone; copied and kept prefixes are as good as
computed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.available import Available
from tests.gpu.gpu_models import LIMITS, Ids, Make, greedy, prefill, relative, span, step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PRECISIONS = ("fp16", "bf16", "fp8", "int4")
# Another batch size may take another kernel, which sums in another order: equal but for rounding. Twice what numpy
# gives for these models with every activation moved by a last bit before it is rounded; not yet measured on a card. In
# fp8 most rows do not move at all, and one on a rounding tie by 8%; faults show in fp16 from 1% on.
ROUNDING = {"fp16": 8e-3, "bf16": 8e-2, "fp8": 0.15, "int4": 3e-2}
NUM_SLOTS = LIMITS["max_slots"]


def prompts(ids: Ids) -> dict[int, Ids]:
    """A prompt of its own length for every slot."""
    return {slot: np.roll(ids, 11 * slot)[: 5 + 9 * slot] for slot in range(NUM_SLOTS)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["llama", "glm4"])
def test_a_batch_equals_one_by_one(family: str, precision: str, tiny_on_gpu: Make, ids: Ids) -> None:
    runner = tiny_on_gpu(family, precision).runner
    alone = {}
    for slot, prompt in prompts(ids).items():
        prefill(runner, prompt, slot)
        alone[slot] = step(runner, span(slot, len(prompt), ids[:1]))[0]
    for slot, prompt in prompts(ids).items():
        prefill(runner, prompt, slot)
    together = step(runner, *(span(slot, len(prompt), ids[:1]) for slot, prompt in prompts(ids).items()))
    for slot, row in enumerate(together):
        assert relative(row, alone[slot]) < ROUNDING[precision], f"slot {slot}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_company_gives_the_same_answer(precision: str, tiny_on_gpu: Make, ids: Ids) -> None:
    """The same slot, the same batch size: only the other rows differ, so not one bit may."""
    runner = tiny_on_gpu("glm4", precision).runner
    answers = []
    for shift in (0, 17, 41):
        rows = []
        for slot in range(NUM_SLOTS):
            prefill(runner, ids[:20] if slot == 3 else np.roll(ids, shift + slot)[: 10 + slot], slot)
        for place in range(4):
            spans = [
                span(slot, (20 if slot == 3 else 10 + slot) + place, ids[place : place + 1])
                for slot in range(NUM_SLOTS)
            ]
            rows.append(step(runner, *spans)[3].tobytes())
        answers.append(rows)
    assert answers[0] == answers[1] == answers[2]


def test_greedy_tokens_are_the_same_in_a_batch(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    runner = tiny_on_gpu("llama", here.precision).runner
    alone = {slot: greedy(runner, {slot: prompt}, 24)[slot] for slot, prompt in prompts(ids).items()}
    together = greedy(runner, prompts(ids), 24)
    same = sum(alone[slot] == together[slot] for slot in alone)
    assert same >= NUM_SLOTS - 2, "rounding may turn near ties of random weights, but not many"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_idle_slots_keep_their_tokens(precision: str, tiny_on_gpu: Make, ids: Ids) -> None:
    """Rows 0 ... 6 are computed for slots 0 and 6; those between are idle and must not be written."""
    runner = tiny_on_gpu("glm4", precision).runner
    full = prefill(runner, ids, slot=7)
    prefill(runner, ids[:40], slot=3)
    for slot in (0, 6):
        prefill(runner, ids[:10], slot)
    for place in range(6):
        step(runner, *(span(slot, 10 + place, ids[:1]) for slot in (0, 6)))
    assert relative(prefill(runner, ids, slot=3, start=40), full) < ROUNDING[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copied_prefix_is_as_good_as_computed_and_independent(precision: str, tiny_on_gpu: Make, ids: Ids) -> None:
    runner = tiny_on_gpu("glm4", precision).runner
    full, other = prefill(runner, ids, slot=1), np.concatenate([ids[:50], ids[:20]])
    branch = prefill(runner, other, slot=2)
    runner.copy_prefix(1, 5, 50)
    assert relative(prefill(runner, other, slot=5, start=50), branch) < ROUNDING[precision]
    assert relative(prefill(runner, ids, slot=1, start=95), full) < ROUNDING[precision], "the source is untouched"


def test_a_slot_can_be_filled_to_its_end(tiny_on_gpu: Make, here: Available, ids: Ids) -> None:
    model = tiny_on_gpu("llama", here.precision)
    bound = ROUNDING[here.precision]
    length = model.manifest.max_length
    long = np.resize(ids, length).astype(np.int32)
    expected = model.reference.logits(long)[-1]
    assert relative(prefill(model.runner, long, slot=0), expected) < bound
    prefill(model.runner, long[:-1], slot=4)
    assert relative(step(model.runner, span(4, length - 1, long[-1:]))[0], expected) < bound
