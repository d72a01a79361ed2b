"""The batch is as large as there are requests, at every step, and nobody waits for company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from autoglm_engine.core import StepBatch
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import VOCAB, Bench
from tests.support.engine.fakes import request

NUM_SLOTS = 6


def bench_of(admission: str) -> Bench:
    limits = Limits(NUM_SLOTS, 64, 16, VOCAB)
    return Bench(0, limits, plain_settings(admission=admission, token_budget=200))


def issued(bench: Bench) -> list[int]:
    """How many sequences each step issued so far had, with the one in flight; filled while the engine steps."""
    sizes: list[int] = []

    def note(batch: StepBatch) -> None:
        sizes.append(len(batch.spans))

    bench.runner.before_issue = note
    return sizes


@pytest.mark.parametrize("admission", ["fifo", "features"])
def test_a_lone_request_is_issued_with_the_very_next_step(admission: str) -> None:
    bench = bench_of(admission)
    sizes, arrived = issued(bench), bench.clock.now
    bench.engine.submit(request("alone", max_tokens=4, ignore_eos=True))
    assert not bench.engine.is_gathering
    bench.step()
    assert (sizes, bench.clock.now) == ([1], arrived), "no time passed before it was issued"


@pytest.mark.slow
@pytest.mark.parametrize("admission", ["fifo", "features"])
@settings(max_examples=60, deadline=None)
@given(arrivals=st.lists(st.integers(0, 4), min_size=1, max_size=15))
def test_every_step_has_all_requests_that_are_there(admission: str, arrivals: Sequence[int]) -> None:
    """Trough or peak: each request takes exactly as many steps as it has tokens, from the step after it came or, where
    all slots were busy, from the first one with a free slot."""
    bench = bench_of(admission)
    sizes, remaining, waiting, number = issued(bench), list[int](), 0, 0
    for step, count in enumerate([*arrivals, *[0] * 40]):
        for _ in range(count):
            bench.engine.submit(request(f"r{number}", [1, 2, number % 60], max_tokens=3, ignore_eos=True))
            number += 1
        waiting += count
        remaining = [left - 1 for left in remaining if left > 1]
        admitted = min(waiting, NUM_SLOTS - len(remaining))
        waiting -= admitted
        remaining += [3] * admitted
        before = len(sizes)
        bench.step()
        assert sizes[before:] == ([len(remaining)] if remaining else []), f"at step {step}"
    bench.assert_idle()
