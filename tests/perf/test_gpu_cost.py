"""The cost model of docs/gpu.md: its parts are the shapes' arithmetic, and the page has what it computes today."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from autoglm_perf.gpu import cost as gpu_cost
from autoglm_perf.gpu.cost import ATTAINED_READ, CARDS, LENGTHS, ROWS, SPEC, Card, Step
from autoglm_perf.gpu.shapes import step_bytes
from autoglm_perf.suite.markdown import replaced

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
H200 = next(card for card in CARDS if card.name == "H200")
CASES = [
    (card, rows, tokens)
    for card, rows, tokens in product(CARDS, ROWS, LENGTHS)
    if tokens < gpu_cost.capacity(card, rows)
]


def test_the_page_has_the_tables_of_today() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert replaced(text, gpu_cost.render(), gpu_cost.COMMAND) == text, f"run {gpu_cost.COMMAND}"


@pytest.mark.parametrize(("card", "rows", "tokens"), CASES, ids=str)
def test_a_step_reads_what_it_must_and_what_its_attention_is_padded_to(card: Card, rows: int, tokens: int) -> None:
    before, now = gpu_cost.step_before(card, rows), gpu_cost.step_now(card, rows, tokens)
    least = step_bytes(SPEC, gpu_cost.PRECISION, rows, tokens) / (card.bandwidth * ATTAINED_READ)
    assert least <= now.weights + now.cache
    assert now.cache <= before.cache * 1.05, "but for the spare positions"
    assert now.total < before.total


def test_a_step_is_its_parts() -> None:
    assert Step(1.0, 2.0, 3.0, 4.0).total == 10.0
    one = gpu_cost.step_now(H200, 1, 1000)
    assert one.weights == pytest.approx(17.56e9 / (4.8e12 * 0.9), rel=1e-3)
    assert one.cache == pytest.approx(1024 * 40_960 / (4.8e12 * 0.9))
    many = gpu_cost.step_now(H200, 256, 1000)
    assert many.weights == pytest.approx(17.56e9 * 256 / (989e12 * 0.7), rel=1e-3), "bound by arithmetic"


def test_slots_that_a_card_has_no_room_for_have_no_capacity() -> None:
    small = Card("a card of 24 GB", 1e12, 1e14, 24e9, 25e9)
    assert gpu_cost.capacity(small, 1) == 25_600
    assert 4_500 < gpu_cost.capacity(small, 16) < 5_000, "(24 - 18.8 - 2) GB / 16 / 40,960 bytes"
    assert gpu_cost.capacity(Card("a card of 16 GB", 1e12, 1e14, 16e9, 25e9), 1) == 0


def test_short_prompts_share_calls_and_long_ones_are_padded_by_a_quarter_at_most() -> None:
    assert gpu_cost.prompts_before(32, 16) == [16] * 32
    assert gpu_cost.prompts_now(32, 16) == [8 * 16] * 4
    for tokens in range(257, 513, 5):
        (padded,) = gpu_cost.prompts_now(1, tokens)
        assert tokens <= padded <= tokens * 1.25
