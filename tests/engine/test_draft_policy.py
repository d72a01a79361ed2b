"""Which drafts pay."""

from __future__ import annotations

import pytest
from autoglm_engine.engine.speculation.policy import Acceptance, Offer, StepWork, allot
from autoglm_engine.engine.speculation.step_cost import fixed_rows
from hypothesis import given
from hypothesis import strategies as st

FIXED = 7.0


def decode(num: int) -> StepWork:
    return StepWork(num, float(num), FIXED)


@pytest.mark.parametrize(
    ("running", "acceptance", "count"),
    [(1, 0.05, 0), (1, 0.3, 1), (1, 0.9, 7), (4, 0.3, 0), (4, 0.9, 4), (16, 0.5, 0), (16, 0.6, 0), (16, 0.99, 6)],
)
def test_large_batches_draft_only_what_is_near_certain(running: int, acceptance: float, count: int) -> None:
    counts = allot([Offer(acceptance, 8)] * running, decode(running), 256)
    assert counts[0] == count


def test_many_sequences_at_once_ask_for_better_drafts() -> None:
    drafted = [allot([Offer(0.8, 8)] * running, decode(running), 256)[0] for running in (1, 2, 4, 8, 16, 32, 64)]
    assert drafted == sorted(drafted, reverse=True)
    assert (drafted[0] > 2, drafted[-1]) == (True, 0)


def test_always_drafts_whatever_it_pays_within_what_is_spare() -> None:
    offers = [Offer(0.9, 8), Offer(0.0, 5, always=True), Offer(0.01, 4)]
    assert allot(offers, decode(3), 256)[1:] == [5, 0]
    assert allot(offers, decode(3), 6) == [1, 5, 0]
    assert allot(offers, decode(3), 0) == [0, 0, 0]


OFFERS = st.lists(st.builds(Offer, st.floats(0, 1), st.integers(0, 16), st.booleans()), max_size=20)


@given(OFFERS, st.integers(0, 64))
def test_no_more_than_was_offered_or_is_spare(offers: list[Offer], spare: int) -> None:
    counts = allot(offers, decode(len(offers)), spare)
    assert all(0 <= count <= offer.most for count, offer in zip(counts, offers, strict=True))
    assert sum(counts) <= spare
    wanted = sum(offer.most for offer in offers if offer.always)
    assert sum(c for c, offer in zip(counts, offers, strict=True) if offer.always) == min(wanted, spare)


@given(st.lists(st.builds(Offer, st.floats(0, 1), st.integers(0, 16)), min_size=1, max_size=20))
def test_drafts_raise_what_a_step_yields_a_time(offers: list[Offer]) -> None:
    work = decode(len(offers))
    counts = allot(offers, work, 256)
    gained = sum(o.acceptance**i for o, c in zip(offers, counts, strict=True) for i in range(1, c + 1))
    before = work.num_expected / (work.fixed + work.num_rows)
    after = (work.num_expected + gained) / (work.fixed + work.num_rows + sum(counts))
    assert after >= before * (1 - 1e-9)


def test_the_estimate_follows_what_happens_and_comes_back() -> None:
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.judge(was_right=False)
    assert allot([Offer(acceptance.estimate, 8)], decode(1), 256) == [0]
    for _ in range(10):
        acceptance.judge(was_right=True)
    assert allot([Offer(acceptance.estimate, 8)], decode(1), 256)[0] > 2
    assert 0 <= acceptance.estimate <= 1


@pytest.mark.parametrize(
    ("one", "nine", "rows"), [(8.0, 16.0, 7.0), (5.0, 5.0, 1000.0), (5.0, 4.0, 1000.0), (1.0, 9.0, 1.0)]
)
def test_fixed_rows_of_two_times(one: float, nine: float, rows: float) -> None:
    assert fixed_rows(one, nine, 8) == rows
