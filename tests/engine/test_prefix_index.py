"""Whatever happens to the slots, the index tells of each prompt what a comparison of tokens would."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.core import TokenIds
from autoglm_engine.engine.prefix_index import BLOCK, PrefixIndex, chain_of, extend, num_common
from autoglm_engine.engine.slots import SlotTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

NUM_SLOTS, LENGTH = 3, 5 * BLOCK


def blocks(*values: int, rest: int = 0) -> TokenIds:
    """Whole blocks of one value each, and `rest` tokens of another."""
    return np.repeat(np.array([*values, 9], np.int32), [BLOCK] * len(values) + [rest])


@pytest.mark.parametrize(
    ("held", "prompt", "common"),
    [
        ((1, 2, 3), blocks(1, 2, 3), 3),
        ((1, 2, 3), blocks(1, 2, 3, rest=5), 3),
        ((1, 2, 3), blocks(1, 2, 4), 2),
        ((1, 2, 3), blocks(2, 3), 0),
        ((1, 2, 3), blocks(4, 2, 3), 0),
        ((1,), blocks(1, 1, 1), 1),
        ((), blocks(1), 0),
        ((1,), blocks(rest=5), 0),
    ],
)
def test_whole_blocks_from_the_beginning_count(held: tuple[int, ...], prompt: TokenIds, common: int) -> None:
    assert num_common(chain_of(prompt, "t"), set(chain_of(blocks(*held), "t"))) == common


def test_a_chain_grows_to_the_one_of_the_whole() -> None:
    chain = chain_of(blocks(1, 2), "t")
    extend(chain, blocks(1, 2, 3, rest=3), "t")
    assert chain == chain_of(blocks(1, 2, 3), "t")


TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(lambda values: blocks(*values, rest=3))

TENANTS = st.sampled_from(["", "a"])


@settings(max_examples=60, stateful_step_count=30, deadline=None)
class IndexedSlots(RuleBasedStateMachine):
    """Prompts come, grow and go; refreshes come now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotTable(NUM_SLOTS, LENGTH)
        self.index = PrefixIndex(self.slots)
        self.prompts: dict[int, TokenIds] = {}

    @rule(prompt=TEXTS, tenant=TENANTS)
    def begin(self, prompt: TokenIds, tenant: str) -> None:
        if not self.slots.can_allocate:
            return
        slot = self.slots.allocate(prompt, tenant).slot
        self.slots.tokens[slot, : len(prompt)] = prompt
        self.prompts[slot] = prompt

    @rule(share=st.floats(0, 1), data=st.data())
    def compute(self, share: float, data: st.DataObject) -> None:
        if self.prompts:
            slot = data.draw(st.sampled_from(sorted(self.prompts)))
            self.slots.advance(slot, max(int(self.slots.length[slot]), int(share * len(self.prompts[slot]))))

    @rule(retain=st.booleans(), data=st.data())
    def end(self, retain: bool, data: st.DataObject) -> None:
        if self.prompts:
            slot = data.draw(st.sampled_from(sorted(self.prompts)))
            del self.prompts[slot]
            self.slots.release(slot, retain=retain)

    @rule()
    def fail(self) -> None:
        self.slots.forget_retained()

    @rule(prompt=TEXTS, tenant=TENANTS)
    def look_up(self, prompt: TokenIds, tenant: str) -> None:
        self.index.refresh()
        own = [slot for slot in range(NUM_SLOTS) if self.slots.tenant[slot] == tenant]
        rows = [self.slots.tokens[slot, : self.slots.length[slot]] for slot in own]
        expected = max((common_blocks(prompt, row) for row in rows), default=0)
        assert self.index.num_held(chain_of(prompt, tenant)) == expected

    @invariant()
    def is_whole(self) -> None:
        self.slots.check()


def common_blocks(prompt: TokenIds, row: TokenIds) -> int:
    count = min(len(prompt), len(row))
    differ = np.flatnonzero(prompt[:count] != row[:count])
    return int(differ[0] if len(differ) else count) // BLOCK


TestIndexedSlots = IndexedSlots.TestCase
