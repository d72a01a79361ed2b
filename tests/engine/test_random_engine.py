"""Random callers of a whole engine: no answer is lost, given twice or wrong. `make hostile` asks 30,000 of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.random_world import World


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes_together(seed: int) -> None:
    World(seed).run(40)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_worlds(seed: int) -> None:
    World(seed).run(25)
