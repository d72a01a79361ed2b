"""What a device is told of a request's logits, and what it makes of it: candidates as dense tables on the host give
them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.core import Adjustments, Candidates, Event, Logits, Span, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Deferred, Limits, Runner, run_step
from autoglm_engine.runners.tensorrt.logit_state import MAX_SINGLE_WRITES
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.fakes import answers, letters_text, rank, request
from tests.support.tensorrt.contract_network import GpuBench

VOCAB = 97


@pytest.fixture
def bench(tmp_path: Path) -> GpuBench:
    made = GpuBench(tmp_path)
    made.open()
    return made


def told(
    ids: list[int], *, reset: bool = False, factor: float = 1.0, offset: float = 0.0, inverse_temperature: float = 1.0
) -> Adjustments:
    count = len(ids)
    factors, offsets = np.full(count, factor, np.float32), np.full(count, offset, np.float32)
    return Adjustments(reset, np.array(ids, np.int32), factors, offsets, inverse_temperature)


def step(bench: GpuBench, slot: int, adjustments: Adjustments | None, ids: list[int] | None = None) -> Candidates:
    token_ids = np.array(ids or [7], np.int32)
    found = bench.runner.issue(StepBatch((Span(slot, 0, token_ids, True, adjustments),))).result()
    assert isinstance(found, Candidates)
    return found


@dataclass
class Dense:
    """The same state, written out."""

    factors: Logits = field(default_factory=lambda: np.ones((5, VOCAB), np.float32))
    offsets: Logits = field(default_factory=lambda: np.zeros((5, VOCAB), np.float32))
    inverse_temperatures: Logits = field(default_factory=lambda: np.ones(5, np.float32))

    def tell(self, slot: int, adjustments: Adjustments) -> None:
        if adjustments.reset:
            self.factors[slot], self.offsets[slot] = 1, 0
        self.factors[slot, adjustments.token_ids] = adjustments.factors
        self.offsets[slot, adjustments.token_ids] = adjustments.offsets
        self.inverse_temperatures[slot] = adjustments.inverse_temperature

    def candidates(self, slots: list[int], rows: Logits) -> Candidates:
        tables = self.factors[slots], self.offsets[slots], self.inverse_temperatures[slots]
        return rank(rows, *tables, 6, lambda row: rows[row])

    def assert_equals(self, bench: GpuBench) -> None:
        np.testing.assert_array_equal(bench.table("logit_factor"), self.factors)
        np.testing.assert_array_equal(bench.table("logit_offset"), self.offsets)


@st.composite
def some_adjustments(draw: st.DrawFn) -> Adjustments:
    reset = draw(st.booleans())
    most = draw(st.sampled_from([3, MAX_SINGLE_WRITES, VOCAB]))
    ids = draw(st.lists(st.integers(0, VOCAB - 1), max_size=most, unique=True))
    values = np.random.default_rng(draw(st.integers(0, 99)))
    factors = values.uniform(0.5, 2, len(ids)).astype(np.float32)
    offsets = np.where(values.random(len(ids)) < 0.2, -np.inf, values.normal(size=len(ids))).astype(np.float32)
    return Adjustments(reset, np.array(ids, np.int32), factors, offsets, draw(st.sampled_from([0.5, 1.0, 2.0])))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 4), st.none() | some_adjustments(), min_size=1), min_size=1, max_size=5
    )
)
@pytest.mark.slow
def test_any_sequence_of_adjustments_leaves_what_dense_tables_hold(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, Adjustments | None]]
) -> None:
    """Slots below 2 take prompts, the others single tokens."""
    bench, dense = GpuBench(tmp_path_factory.mktemp("artifact")), Dense()
    runner = bench.open()
    for told_slots in steps:
        spans = []
        for slot, adjustments in told_slots.items():
            ids = np.array([slot, 9] if slot < 2 else [slot], np.int32)
            spans.append(Span(slot, 0, ids, True, adjustments))
            if adjustments is not None:
                dense.tell(slot, adjustments)
        found = runner.issue(StepBatch(tuple(spans))).result()
        expected = dense.candidates(list(told_slots), np.array([found.full_row(row) for row in range(len(spans))]))
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.log_sum_exp, expected.log_sum_exp)
        dense.assert_equals(bench)


def test_adjustments_stay_until_the_next_and_concern_one_slot(bench: GpuBench) -> None:
    plain = step(bench, 3, None)
    best = plain.token_ids[0, :2].tolist()
    banned = step(bench, 2, told(best, offset=-np.inf, inverse_temperature=0.5))
    assert not set(best) & set(banned.token_ids[0].tolist())
    assert banned.log_sum_exp[0] < plain.log_sum_exp[0]
    np.testing.assert_array_equal(step(bench, 2, None).log_sum_exp, banned.log_sum_exp)
    np.testing.assert_array_equal(step(bench, 3, None).token_ids, plain.token_ids)
    np.testing.assert_array_equal(step(bench, 2, told([], reset=True)).log_sum_exp, plain.log_sum_exp)


def test_whole_rows_are_never_adjusted(bench: GpuBench) -> None:
    row = step(bench, 1, None, [4, 5, 6]).full_row(0)
    adjusted = step(bench, 1, told(list(range(50)), reset=True, factor=3.0, offset=-2.0), [4, 5, 6])
    np.testing.assert_array_equal(adjusted.full_row(0), row)


def test_an_adjusted_slot_that_is_idle_keeps_its_tables(bench: GpuBench) -> None:
    dense = Dense()
    for slot in (0, 2):
        adjustments = told([1, 96], reset=True, factor=1.5, offset=slot - 3.0)
        dense.tell(slot, adjustments)
        step(bench, slot, adjustments)
    step(bench, 4, None)
    step(bench, 1, None, [3, 4])
    dense.assert_equals(bench)


def copies(bench: GpuBench, slot: int, adjustments: Adjustments) -> int:
    """Strided copies that it takes to tell a slot of one token."""
    before = bench.cuda.count("copy_rows")
    step(bench, slot, adjustments)
    return bench.cuda.count("copy_rows") - before


def test_few_copies_tell_much(bench: GpuBench) -> None:
    assert copies(bench, 0, told([], reset=True)) == 0  # as it was at load
    assert copies(bench, 0, told([3], factor=2.0)) == 1
    assert copies(bench, 0, told([], reset=True)) == 1
    assert copies(bench, 0, told([], reset=True)) == 0
    assert copies(bench, 0, told([1, 2], reset=True, factor=2.0)) == 2
    assert copies(bench, 0, told([1, 2], reset=True, factor=2.0)) == 3
    assert copies(bench, 0, told(list(range(60)), reset=True, factor=2.0)) == 1
    assert copies(bench, 0, told(list(range(40)), factor=3.0)) == 40  # the rest of the row is only on the device


def test_all_slots_may_be_told_of_whole_rows_and_of_more_tokens_than_a_staged_row_holds(bench: GpuBench) -> None:
    dense = Dense()
    for reset, count in ((True, 60), (False, 60), (True, 0)):
        ids = np.arange(count)
        adjustments = {slot: told((ids + slot).tolist(), reset=reset, factor=1.0 + slot) for slot in range(5)}
        spans = tuple(Span(s, 0, np.array([1], np.int32), True, adjustments[s]) for s in range(5))
        run_step(bench.runner, StepBatch(spans))
        for slot in range(5):
            dense.tell(slot, adjustments[slot])
        dense.assert_equals(bench)


def test_a_whole_row_is_forgotten_with_the_next_reset(bench: GpuBench) -> None:
    step(bench, 3, told(list(range(60)), reset=True, factor=2.0))
    step(bench, 3, told([], reset=True))
    Dense().assert_equals(bench)


@pytest.mark.parametrize(
    ("adjustments", "message"),
    [
        (told([97]), r"slot 1 has a token id that is not in 0 \.\.\. 96"),
        (told([4, -1]), "slot 1 has a token id"),
        (Adjustments(False, np.array([1, 2], np.int32), np.ones(2, np.float32), np.ones(1, np.float32)), "1 offsets"),
    ],
)
def test_adjustments_outside_the_vocabulary_are_refused(
    bench: GpuBench, adjustments: Adjustments, message: str
) -> None:
    before = len(bench.cuda.calls)
    with pytest.raises(ValueError, match=message):
        step(bench, 1, adjustments)
    assert len(bench.cuda.calls) == before
    Dense().assert_equals(bench)


@dataclass
class WholeRows:
    """The same runner, asked for whole rows, which the host adjusts."""

    bench: GpuBench

    @property
    def limits(self) -> Limits:
        return replace(self.bench.runner.limits, num_candidates=0)

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(lambda batch: run_step(self.bench.runner, batch), batch)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.bench.runner.copy_prefix(source, target, length)

    def close(self) -> None:
        self.bench.runner.close()


def answers_of(runner: Runner) -> dict[str, list[int]]:
    """Twelve requests of all kinds over five slots, some of them with the begin of another one's prompt."""
    engine = Engine(runner, letters_text(), [63], plain_settings(token_budget=20))
    kinds: list[dict[str, object]] = [
        {},
        {"repetition_penalty": 1.7},
        {"temperature": 1.0, "top_k": 4, "presence_penalty": 0.5},
        {"temperature": 0.7, "top_p": 0.6, "repetition_penalty": 1.2},
        {"temperature": 1.3, "frequency_penalty": 0.8, "min_p": 0.2},
        {"min_tokens": 3, "temperature": 1.0, "top_k": 3},
    ]
    for number in range(12):
        prompt = [number % 4, 5, 6, *range(number)]
        engine.submit(request(f"{number}", prompt, max_tokens=6, seed=number, **kinds[number % len(kinds)]))
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    assert not any(event.error for event in events)
    return {name: answer.token_ids for name, answer in answers(events).items()}


@pytest.mark.slow
def test_an_engine_gives_the_same_answers_from_candidates_and_from_whole_rows(tmp_path: Path) -> None:
    bench, other = GpuBench(tmp_path), GpuBench(tmp_path)
    found = answers_of(bench.open())
    assert bench.cuda.count("launch") and bench.cuda.num_queued == 0
    other.open()
    assert found == answers_of(WholeRows(other))
    assert len({tuple(ids) for ids in found.values()}) > 6
