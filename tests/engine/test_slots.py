"""The slot table: which slot a request gets, what it reuses, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.engine.slots import Allocation, Copy, SlotTable
from autoglm_engine.errors import EngineError
from hypothesis import given, settings
from hypothesis import strategies as st

PROMPT = np.arange(100, 160, dtype=np.int32)


def fill(table: SlotTable, tokens: np.ndarray) -> Allocation:
    """Allocate for `tokens` and compute all of them."""
    allocation = table.allocate(tokens)
    table.tokens[allocation.slot, : len(tokens)] = tokens
    table.advance(allocation.slot, len(tokens))
    return allocation


def other(first: int, length: int = 60) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


def test_slots_are_given_from_the_lowest_on() -> None:
    table = SlotTable(3, 64)
    assert [fill(table, other(1000 * i)).slot for i in range(3)] == [0, 1, 2]
    assert not table.can_allocate
    table.release(1, retain=False)
    assert fill(table, PROMPT).slot == 1


def test_a_retained_slot_is_taken_in_place_and_its_last_prompt_token_computed_again() -> None:
    table = SlotTable(2, 64)
    table.release(fill(table, PROMPT).slot)
    assert table.allocate(PROMPT) == Allocation(slot=0, num_reused=len(PROMPT) - 1)


def test_a_longer_conversation_continues_in_its_slot() -> None:
    table = SlotTable(2, 64)
    table.release(fill(table, PROMPT[:40]).slot)
    assert table.allocate(PROMPT) == Allocation(slot=0, num_reused=40)


def test_a_running_slot_lends_its_prefix() -> None:
    table = SlotTable(2, 64)
    fill(table, PROMPT)
    changed = PROMPT.copy()
    changed[50:] = 7
    assert table.allocate(changed) == Allocation(slot=1, num_reused=50, copies=(Copy(0, 1, 50),))


def test_a_prefix_in_a_high_slot_is_copied_down_and_not_kept_twice() -> None:
    table = SlotTable(3, 64)
    fill(table, other(1000))
    fill(table, PROMPT[:40])
    table.release(1)
    table.release(0, retain=False)
    assert table.allocate(PROMPT) == Allocation(slot=0, num_reused=40, copies=(Copy(1, 0, 40),))
    assert (table.num_free, table.num_busy, table.num_retained) == (2, 1, 0)


def test_what_is_worth_keeping_moves_out_of_the_way() -> None:
    table = SlotTable(3, 64)
    table.release(fill(table, PROMPT).slot)
    assert table.allocate(other(1000)) == Allocation(slot=0, num_reused=0, copies=(Copy(0, 2, 60),))
    assert table.allocate(PROMPT) == Allocation(slot=1, num_reused=59, copies=(Copy(2, 1, 59),))


def test_the_least_recently_used_content_is_given_up() -> None:
    table = SlotTable(3, 64)
    contents = [other(1000 * i) for i in (1, 2, 3)]
    for tokens in contents:
        fill(table, tokens)
    for slot in (2, 0, 1):  # slot 2 is the oldest
        table.release(slot)
    assert table.allocate(other(9000)).copies == (Copy(0, 2, 60),)  # slot 0's content outlives slot 2's
    held = {int(row[0]) for row, length in zip(table.tokens[1:], table.length[1:], strict=True) if length}
    assert held == {1000, 2000}


def test_a_short_common_beginning_is_not_copied() -> None:
    table = SlotTable(2, 64)
    fill(table, PROMPT)
    assert table.allocate(np.concatenate([PROMPT[:15], other(5000, 30)])).num_reused == 0


def test_without_prefix_reuse_nothing_is_kept() -> None:
    table = SlotTable(2, 64, prefix_reuse=False)
    table.release(fill(table, PROMPT).slot)
    assert (table.num_free, table.num_retained) == (2, 0)
    fill(table, PROMPT)
    assert table.allocate(PROMPT) == Allocation(slot=1, num_reused=0)


def test_long_prefixes_match_across_comparison_blocks() -> None:
    table = SlotTable(2, 2000)
    long = np.arange(1500, dtype=np.int32)
    table.release(fill(table, long).slot)
    changed = long.copy()
    changed[1100] = -5
    assert table.allocate(changed).num_reused == 1100


def test_what_another_tenant_asked_is_never_reused_wherever_it_was_copied() -> None:
    table = SlotTable(3, 64)
    first = table.allocate(PROMPT, "alice")
    table.tokens[first.slot, : len(PROMPT)] = PROMPT
    table.advance(first.slot, len(PROMPT))
    table.release(first.slot)
    stranger = table.allocate(PROMPT, "bob")
    assert stranger == Allocation(
        slot=0, num_reused=0, copies=(Copy(0, 2, 60),)
    )  # alice's is sheltered, and still hers
    table.release(stranger.slot)
    assert table.allocate(PROMPT).num_reused == 0  # of nobody's
    assert table.allocate(PROMPT, "alice").num_reused == len(PROMPT) - 1


def test_a_damaged_table_is_noticed() -> None:
    table = SlotTable(2, 64)
    table.check()
    table._free.discard(1)
    with pytest.raises(EngineError, match="1 free, 0 busy and 0 retained slots do not make 2"):
        table.check()
    table = SlotTable(2, 64)
    table.length[0] = 3
    with pytest.raises(EngineError, match="a free slot holds tokens"):
        table.check()


def test_a_slot_is_released_once() -> None:
    table = SlotTable(1, 8)
    with pytest.raises(AssertionError, match="slot 0 is released but not busy"):
        table.release(0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.booleans(), st.sampled_from(["", "a"])), max_size=30),
)
def test_what_the_table_says_is_what_the_copies_leave(num_slots: int, script: list[tuple[int, int, bool, str]]) -> None:
    """A shadow memory that only follows the copies holds, in every slot, the tokens the table claims. Each tenant's
    tokens are marked by their sign, so nothing of another's is ever reused."""
    table = SlotTable(num_slots, 100)
    shadow = np.full((num_slots, 100), -1)
    busy: list[int] = []
    for family, length, retain, tenant in script:
        prompt = np.arange(length, dtype=np.int32) // 30 * family + np.arange(length, dtype=np.int32)
        if not table.can_allocate:
            table.release(busy.pop(0), retain=retain)
        allocation = table.allocate(prompt, tenant)
        marked = prompt - 1000 if tenant else prompt
        assert 0 <= allocation.num_reused < length
        for copy in allocation.copies:
            shadow[copy.target, : copy.length] = shadow[copy.source, : copy.length]
        slot = allocation.slot
        assert (shadow[slot, : allocation.num_reused] == marked[: allocation.num_reused]).all()
        shadow[slot, allocation.num_reused : length] = marked[allocation.num_reused :]
        table.tokens[slot, :length] = prompt
        table.advance(slot, length)
        busy.append(slot)
        table.check()
        for row in range(num_slots):
            held = shadow[row, : table.length[row]]
            assert (np.where(held < 0, held + 1000, held) == table.tokens[row, : table.length[row]]).all()
