"""Sampling from a device's candidates against sampling from the whole row: the same seed, the same token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Adjustments, AskedGuide, Candidates, Logits, SamplingOptions
from autoglm_engine.guided.grammar import GuideState
from autoglm_engine.sampling.candidates import Shortlist
from autoglm_engine.sampling.sampler import Sampled, TokenSampler, sample_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.fakes import assert_same, rank

VOCAB = 600  # more than a whole row sorts
EOS = (5, 7)

Row = npt.NDArray[np.float32]

PENALTIES = st.fixed_dictionaries(
    {},
    optional={
        "min_tokens": st.integers(0, 6),
        "repetition_penalty": st.sampled_from([0.6, 1.1, 2.0]),
        "presence_penalty": st.sampled_from([-2.0, 0.3]),
        "frequency_penalty": st.sampled_from([-0.1, 0.7]),
        "ignore_eos": st.booleans(),
        "temperature": st.sampled_from([0.3, 1.0]),
    },
)
FILTERS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-4, 0.1, 0.5, 1.0, 3.0]), "seed": st.integers(0, 50)},
    optional={
        "top_k": st.sampled_from([1, 2, 7, 20, 200]),
        "top_p": st.floats(0.01, 0.99),
        "min_p": st.floats(0.001, 1.0),
        "logprobs": st.sampled_from([1, 3]),
    },
)
TOKENS = st.lists(st.integers(0, 30) | st.sampled_from(EOS), max_size=12)


def sampler(prompt: list[int] | None = None, guide: AskedGuide | None = None, **options: Any) -> TokenSampler:
    ids = np.array([1, 2] if prompt is None else prompt, np.int32)
    return TokenSampler(SamplingOptions(**{"max_tokens": 64, **options}), ids, EOS, 64, guide)


@dataclass
class SomeTokens:
    """A guide that allows other tokens at random at each place, a share of them."""

    seed: int
    share: float
    _place: int = 0

    is_ready = True
    failure = None

    def start(self) -> None:
        pass

    def begin(self) -> GuideState:
        return cast(GuideState, SomeTokens(self.seed, self.share))

    def allowed(self) -> npt.NDArray[np.bool_]:
        allowed = np.random.default_rng([self.seed, self._place]).random(VOCAB) < self.share
        allowed[self.seed % VOCAB] = True
        return allowed

    def allows(self, token_id: int) -> bool:
        return bool(self.allowed()[token_id])

    def count(self, token_id: int) -> None:
        self._place += 1


def random_row(seed: int, spread: float, ties: bool) -> Row:
    row = np.random.default_rng(seed).standard_normal(VOCAB) * spread
    return (np.round(row) if ties else row).astype(np.float32)


class Device:
    """One row's dense state, and its candidates."""

    def __init__(self, num_candidates: int) -> None:
        self.factors, self.offsets = np.full(VOCAB, 0.5, np.float32), np.full(VOCAB, 3, np.float32)
        self.inverse_temperature = np.float32("nan")
        self.num_candidates = num_candidates
        self.num_whole_rows = 0

    def adjust(self, told: Adjustments | None) -> None:
        if told is None:
            return
        if told.reset:
            self.factors[:], self.offsets[:] = 1, 0
        self.factors[told.token_ids], self.offsets[told.token_ids] = told.factors, told.offsets
        self.inverse_temperature = np.float32(told.inverse_temperature)

    def adjusted(self, row: Row) -> Row:
        values: Row = np.where(row < 0, row * self.factors, row / self.factors) + self.offsets
        return values

    def candidates(self, row: Row) -> Candidates:
        def full_row(index: int) -> Logits:
            self.num_whole_rows += 1
            return row.copy()

        state = self.factors[None], self.offsets[None], self.inverse_temperature[None]
        return rank(row[None], *state, self.num_candidates, full_row)


# ---- what the device is told


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    PENALTIES,
    st.lists(st.integers(0, 30), min_size=1, max_size=20),
    TOKENS,
    st.lists(st.booleans(), min_size=13),
    st.integers(0, 9),
)
def test_the_changes_add_up_to_the_penalties_themselves(
    options: dict[str, Any], prompt: list[int], tokens: list[int], asked: list[bool], seed: int
) -> None:
    """To the last bit, and whether or not a step was sampled after each token."""
    tested, device, row = sampler(prompt, **options), Device(8), random_row(seed, 3.0, ties=False)
    for token_id, is_asked in zip([None, *tokens], asked, strict=False):
        if token_id is not None:
            tested.count(token_id)
        if is_asked:
            device.adjust(tested.take_adjustments())
            np.testing.assert_array_equal(device.adjusted(row), tested._adjusted(row))


def test_a_ban_outlives_penalties_of_the_same_token() -> None:
    tested, row = sampler([5], min_tokens=2, repetition_penalty=2.0, presence_penalty=1.0), np.ones(VOCAB, np.float32)
    tested.count(5)
    assert tested._adjusted(row)[5] == -np.inf
    tested.count(6)
    assert tested._adjusted(row)[5] == 0.5 - 1.0


def test_a_request_without_penalties_is_told_once() -> None:
    tested = sampler(temperature=0.25)
    first = tested.take_adjustments()
    assert first is not None
    assert (first.reset, len(first.token_ids), first.inverse_temperature) == (True, 0, 4.0)
    tested.count(3)
    assert tested.take_adjustments() is None


def test_a_token_that_is_said_again_changes_nothing_for_a_repetition_penalty() -> None:
    tested = sampler([1, 2], repetition_penalty=1.5)
    first = tested.take_adjustments()
    assert first is not None
    assert (first.token_ids.tolist(), first.factors.tolist(), first.inverse_temperature) == ([1, 2], [1.5, 1.5], 1.0)
    tested.count(2)
    assert tested.take_adjustments() is None
    tested.count(3)
    later = tested.take_adjustments()
    assert later is not None
    assert (later.reset, later.token_ids.tolist(), later.factors.tolist()) == (False, [3], [1.5])


# ---- what is drawn


@settings(max_examples=600, deadline=None)
@given(
    FILTERS,
    PENALTIES,
    TOKENS,
    st.integers(1, 210),
    st.integers(0, 10**6),
    st.sampled_from([0.5, 2.0, 8.0]),
    st.booleans(),
    st.sampled_from([None, 0.02, 0.5, 0.95, 1.0]),
)
@pytest.mark.slow
def test_the_same_token_as_from_the_whole_row(
    filters: dict[str, Any],
    penalties: dict[str, Any],
    said: list[int],
    num_candidates: int,
    seed: int,
    spread: float,
    ties: bool,
    share: float | None,
) -> None:
    options = {**penalties, **filters, "guide": None if share is None else SomeTokens(seed, share)}
    whole, short, device = sampler(**options), sampler(**options), Device(num_candidates)
    for step, token_id in enumerate([None, *said]):
        if token_id is not None:
            whole.count(token_id)
            short.count(token_id)
        device.adjust(short.take_adjustments())
        row = random_row(seed + step, spread, ties)
        assert_same(sample_batch(device.candidates(row), [short]), sample_batch(row[None], [whole]))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.floats(0.05, 0.95) | st.just(1.0),
    st.floats(-1e-5, 1e-5),
    st.integers(0, 10**6),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([None, 0.3, 0.9]),
)
def test_the_error_of_a_devices_sum_changes_no_token(
    top_p: float, error: float, seed: int, temperature: float, share: float | None
) -> None:
    row = random_row(seed, 3.0, ties=False)
    guide = None if share is None else SomeTokens(seed, share)
    options = {"temperature": temperature, "top_p": top_p, "seed": seed, "guide": guide}
    whole, short, device = sampler(**options), sampler(**options), Device(64)
    device.adjust(short.take_adjustments())
    found = device.candidates(row)
    found.log_sum_exp[:] += np.float32(error)
    assert_same(sample_batch(found, [short]), sample_batch(row[None], [whole]))


ENOUGH = [
    {},
    {"frequency_penalty": 1.0, "min_tokens": 3},
    {"temperature": 0.5, "top_k": 40},
    {"temperature": 0.5, "top_k": 63, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.5, "top_p": 0.85},
    {"temperature": 0.5, "top_p": 0.85, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 0.5, "min_p": 0.05},
    {"temperature": 0.5},
    {"temperature": 0.3, "frequency_penalty": 1.0, "min_tokens": 3},
    {"logprobs": 20},
    {"temperature": 0.3, "top_k": 4, "logprobs": 1},
    {"temperature": 0.3, "min_p": 0.1, "logprobs": 1},
    {"guide": SomeTokens(1, 0.5), "logprobs": 3},
    {"guide": SomeTokens(1, 0.5), "temperature": 0.5, "top_k": 10},
    {"guide": SomeTokens(1, 0.9), "temperature": 0.3},
]
TOO_FEW = [
    {"temperature": 1e4},
    {"temperature": 0.5, "top_k": 64},  # the 64th may have equals outside
    {"temperature": 9.0, "top_p": 0.99},
    {"temperature": 9.0, "min_p": 0.01},
    {"temperature": 0.5, "logprobs": 1},  # the device's sum is at another temperature
    {"temperature": 0.5, "top_p": 0.5, "logprobs": 1},
    {"frequency_penalty": 1.0, "logprobs": 1},  # these are of the logits before penalties
]


@pytest.mark.parametrize(
    ("options", "num_rows"), [*((options, 0) for options in ENOUGH), *((options, 1) for options in TOO_FEW)], ids=str
)
def test_the_whole_row_is_fetched_only_where_it_is_needed(options: dict[str, Any], num_rows: int) -> None:
    for seed in range(20):
        tested, device = sampler(seed=1, **options), Device(64)
        device.adjust(tested.take_adjustments())
        sample_batch(device.candidates(random_row(seed, 4.0, ties=False)), [tested])
        assert device.num_whole_rows == num_rows


def shortlist(values: Row, log_sum_exp: float) -> Shortlist:
    ids = np.arange(len(values), dtype=np.int32)
    sums = np.array([log_sum_exp], np.float32)
    found = Shortlist.of(Candidates(ids[None], values[None], sums, lambda row: values), 0)
    assert found is not None
    return found


def test_a_draw_within_rounding_or_outside_of_the_candidates_is_left_to_the_whole_row() -> None:
    listed = shortlist(np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.05], np.float32)), 0.0)
    assert [listed.drawn(1.0, 1.0, uniform) for uniform in (0.0, 0.39, 0.41, 0.61, 0.79)] == [0, 0, 1, 2, 2]
    assert listed.drawn(1.0, 1.0, 0.4 * (1 + 1e-5)) is listed.drawn(1.0, 1.0, 0.4 * (1 - 1e-5)) is None
    assert listed.drawn(1.0, 1.0, 0.81) == 3, "the fifth may have equals outside, the fourth has none"
    assert listed.drawn(1.0, 1.0, 0.901) is listed.drawn(1.0, 1.0, 0.99) is None


def test_a_nucleus_whose_end_is_unknown_weighs_as_much_as_its_last_token_more() -> None:
    listed = shortlist(np.log(np.array([0.4, 0.3, 0.1], np.float32)), 0.0)  # 0.75 at least, 0.85 at most
    assert listed.kept(SamplingOptions(max_tokens=1, temperature=1.0, top_p=0.75)) is None
    assert [listed.drawn(1.0, 0.75, uniform) for uniform in (0.4, 0.5, 0.6, 0.8, 0.9)] == [0, None, 1, 1, None]


def test_of_what_is_outside_a_guide_may_allow_all_or_nothing() -> None:
    listed = shortlist(np.log(np.array([0.5, 0.2, 0.2, 0.06, 0.01], np.float32)), 0.0)
    allowed = listed.among(np.array([False, True, True, True, True]))  # 0.46 at least, 0.5 at most
    assert [allowed.drawn(1.0, 1.0, uniform) for uniform in (0.39, 0.41, 0.44, 0.75, 0.81)] == [1, None, 2, 2, None]
    assert listed.among(np.zeros(5, np.bool_)).drawn(1.0, 1.0, 0.5) is None
    assert listed.among(np.ones(5, np.bool_)).drawn(1.0, 1.0, 0.5) is None, "0.96 at least, 1 at most: 0.48 or 0.5"


def test_a_nucleus_that_ends_within_rounding_is_left_to_the_whole_row() -> None:
    listed = shortlist(np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.05], np.float32)), 0.0)

    def kept(top_p: float) -> list[int] | None:
        found = listed.kept(SamplingOptions(max_tokens=1, temperature=1.0, top_p=top_p))
        return None if found is None else found[0].tolist()

    assert [kept(0.39), kept(0.4), kept(0.401), kept(0.6), kept(0.61)] == [[0], None, [0, 1], None, [0, 1, 2]]
    assert kept(0.4 * (1 + 1e-5)) is kept(0.4 * (1 - 1e-5)) is None, "a device's sum is not that good"
    assert kept(0.95) is None, "what equals the last candidate may be outside"


def test_a_nucleus_beyond_what_the_whole_row_sorts_is_left_to_it() -> None:
    values = np.linspace(0.1, 0.0, 400, dtype=np.float32)
    total = np.exp(values.astype(np.float64)).cumsum()
    listed = shortlist(values, float(np.log(total[-1])))

    def num_kept(top_p: float) -> int | None:
        found = listed.kept(SamplingOptions(max_tokens=1, temperature=1.0, top_p=top_p))
        return None if found is None else len(found[0])

    middle = (total[:-1] + total[1:]) / 2 / total[-1]
    assert [num_kept(middle[100]), num_kept(middle[254]), num_kept(middle[255])] == [102, 256, None]


def test_a_tie_for_the_first_place_goes_to_the_lowest_id() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[[50, 20, 90]] = 1.0
    for num_candidates, num_rows in ((8, 0), (3, 1)):  # three of three: a fourth may be outside
        device, tested = Device(num_candidates), sampler()
        device.adjust(tested.take_adjustments())
        assert sample_batch(device.candidates(row), [tested]) == [Sampled(20)]
        assert device.num_whole_rows == num_rows


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 5}, {"frequency_penalty": 1.0}], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_reported(options: dict[str, float], value: float) -> None:
    row = random_row(3, 2.0, ties=False)
    row[50 if np.isnan(value) or value > 0 else slice(None)] = value
    device, tested = Device(8), sampler(**options)
    device.adjust(tested.take_adjustments())
    assert sample_batch(device.candidates(row), [tested]) == [Sampled(-1)]


@pytest.mark.parametrize("num_candidates", [257, 258, 300, 600])
def test_more_candidates_than_a_whole_row_puts_in_order(num_candidates: int) -> None:
    """What is drawn beyond these is drawn block by block there."""
    for seed in range(30):
        row, device = random_row(seed, 0.3, ties=False), Device(num_candidates)
        whole, short = (sampler(temperature=1.0, seed=seed) for _ in range(2))
        device.adjust(short.take_adjustments())
        assert sample_batch(device.candidates(row), [short]) == [whole.sample(row)]
