"""Sampling against transformers' logits processors and a plain, slow reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.sampling.logprobs import logprobs_of
from autoglm_engine.sampling.row_ops import NUM_LIKELIEST, draw_from_all, large_nucleus, most_likely
from autoglm_engine.sampling.sampler import Sampled, TokenSampler, sample_batch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

VOCAB = 997  # prime: no block division comes out even
EOS = (5, 7)
PROMPT = np.array([1, 2, 2, 9], np.int32)

Row = npt.NDArray[np.float32]


def sampler(prompt: npt.NDArray[np.int32] = PROMPT, **options: object) -> TokenSampler:
    return TokenSampler(SamplingOptions(**{"max_tokens": 64, **options}), prompt, EOS, 64)  # type: ignore[arg-type]


def random_logits(num_rows: int, seed: int = 0, scale: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((num_rows, VOCAB)) * scale).astype(np.float32)


def transformers_probabilities(row: Row, options: SamplingOptions) -> npt.NDArray[np.float64]:
    """The distribution that Hugging Face samples from."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor(row, dtype=torch.float64)[None]
    ids = torch.zeros((1, 1), dtype=torch.long)
    scores = TemperatureLogitsWarper(options.temperature)(ids, scores)
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(ids, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(ids, scores)
    if options.min_p:
        scores = MinPLogitsWarper(options.min_p)(ids, scores)
    probabilities: npt.NDArray[np.float64] = torch.softmax(scores, -1)[0].numpy()
    return probabilities


FILTERS = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 30, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_distribution_is_the_one_transformers_samples_from(options: dict[str, float], temperature: float) -> None:
    for row in random_logits(3, seed=4):
        tested = sampler(temperature=temperature, **options)
        expected = transformers_probabilities(row, tested._options)
        ids, weights = tested._kept(row, row.max())
        found = np.zeros(VOCAB)
        found[ids] = weights / weights.sum()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert len(ids) == (expected > 0).sum()


@pytest.mark.slow
def test_draws_follow_the_distribution() -> None:
    row = random_logits(1, seed=2)[0]
    for options in ({}, {"top_k": 20}, {"top_p": 0.9}):
        tested = sampler(temperature=0.7, seed=11, **options)
        expected = transformers_probabilities(row, tested._options)
        counts = np.bincount([tested.sample(row).token_id for _ in range(4000)], minlength=VOCAB)
        assert not counts[expected == 0].any()
        assert np.abs(counts / 4000 - expected).sum() / 2 < 0.08  # total variation; about 0.04 is chance


@pytest.mark.slow
def test_the_whole_unit_interval_is_mapped_to_tokens_in_proportion() -> None:
    row = random_logits(1, seed=3, scale=1.0)[0]
    row[[0, VOCAB - 1]] = -np.inf
    weights = np.exp(row.astype(np.float64) - row.max())
    drawn = [draw_from_all(row, row.max(), 1.0, uniform) for uniform in np.linspace(0, 1, 20_000, endpoint=False)]
    found = np.bincount(drawn, minlength=VOCAB) / 20_000
    np.testing.assert_allclose(found, weights / weights.sum(), atol=2 / 20_000)
    assert draw_from_all(row, row.max(), 1.0, float(np.nextafter(1.0, 0.0))) not in (0, VOCAB - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-30, 30), min_size=1, max_size=400),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.1, 1, 9]),
)
def test_the_most_likely_tokens_are_drawn_first(values: list[int], uniform: float, temperature: float) -> None:
    """Largest first, then lowest id, and the draw knows nothing else of them: what a device's candidates can be held
    to."""
    row = np.array(values, np.float32) / 4
    likely = sorted(range(len(row)), key=lambda i: (-row[i], i))[:NUM_LIKELIEST]
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    ends, wanted = weights[likely].cumsum(), uniform * weights.sum()
    assume((np.abs(ends - wanted) > 1e-5 * wanted).all())
    drawn = draw_from_all(row, row.max(), temperature, uniform)
    if wanted < ends[-1]:
        assert drawn == likely[int(ends.searchsorted(wanted, side="right"))]
    else:
        assert drawn not in likely


def test_repetition_penalty_is_hugging_faces_over_prompt_and_completion() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    tested = sampler(repetition_penalty=1.7)
    for token_id in (4, 4, 30):
        tested.count(token_id)
    row = random_logits(1)[0]
    ids = torch.tensor([[*PROMPT.tolist(), 4, 4, 30]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, torch.tensor(row)[None])[0].numpy()
    np.testing.assert_allclose(tested._adjusted(row), expected, rtol=1e-6)


def test_presence_and_frequency_penalties_count_the_completion_only() -> None:
    tested = sampler(presence_penalty=0.5, frequency_penalty=0.25)
    for token_id in (4, 4, 30):
        tested.count(token_id)
    row = random_logits(1)[0]
    expected = row.copy()
    expected[4] -= 0.5 + 2 * 0.25
    expected[30] -= 0.5 + 0.25
    np.testing.assert_allclose(tested._adjusted(row), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"frequency_penalty": 0.2}, {"presence_penalty": 0.2}, {"repetition_penalty": 2.0}]
)
def test_penalties_change_the_greedy_choice(options: dict[str, float]) -> None:
    row = np.zeros(VOCAB, np.float32)
    row[10], row[11] = 1.0, 0.95
    tested = sampler(temperature=0.0, **options)
    assert tested.sample(row).token_id == 10
    tested.count(10)
    assert tested.sample(row).token_id == 11
    assert row[10] == 1.0, "the logits were changed"


def test_min_tokens_bans_every_end_of_sequence_token() -> None:
    row = np.zeros(VOCAB, np.float32)
    row[list(EOS)], row[20] = 9.0, 1.0
    tested = sampler(min_tokens=2)
    for _ in range(2):
        assert sample_batch(row[None], [tested]) == [Sampled(20)]
        tested.count(20)
    assert sample_batch(row[None], [tested]) == [Sampled(5)]


def test_a_seed_gives_the_same_answer_in_whatever_company() -> None:
    rows = random_logits(6, seed=9)
    company = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 3, "top_p": 0.9},
        {"temperature": 2.0, "seed": 4},
        {"temperature": 1.0, "seed": 5, "top_k": 3},
        {"frequency_penalty": 1.0},
        {"temperature": 1.0, "seed": 6, "min_p": 0.1},
    ]

    def tokens(chosen: list[int], steps: int = 20) -> dict[int, list[int]]:
        samplers = [sampler(**company[i]) for i in chosen]
        found: dict[int, list[int]] = {i: [] for i in chosen}
        for _ in range(steps):
            for i, one, sampled in zip(chosen, samplers, sample_batch(rows[chosen], samplers), strict=True):
                one.count(sampled.token_id)
                found[i].append(sampled.token_id)
        return found

    together = tokens([0, 1, 2, 3, 4, 5])
    assert together == {i: tokens([i])[i] for i in range(6)}
    assert {i: tokens([5, 2, i])[i] for i in (1, 3)} == {i: together[i] for i in (1, 3)}


def test_different_seeds_differ_and_no_seed_is_random() -> None:
    row = np.zeros(VOCAB, np.float32)
    answers = {
        tuple(one.sample(row).token_id for _ in range(8)) for one in (sampler(temperature=1.0, seed=s) for s in (1, 2))
    }
    answers |= {
        tuple(one.sample(row).token_id for _ in range(8)) for one in (sampler(temperature=1.0) for _ in range(2))
    }
    assert len(answers) == 4


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    row = random_logits(1)[0]
    tested = sampler(temperature=0.5, seed=1, frequency_penalty=1.0, logprobs=4)
    tested.count(int(row.argmax()))
    sampled = tested.sample(row)
    exact = row.astype(np.float64)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    assert sampled.logprobs is not None
    assert sampled.logprobs.token_id == sampled.token_id
    assert sampled.logprobs.logprob == pytest.approx(exact[sampled.token_id], abs=1e-4)
    assert [token_id for token_id, _ in sampled.logprobs.top] == np.argsort(-exact)[:4].tolist()
    assert [value for _, value in sampled.logprobs.top] == pytest.approx(np.sort(-exact)[:4] * -1, abs=1e-4)
    assert logprobs_of(row, 3, 0) is None


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"frequency_penalty": 1.0}], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_reported_for_their_row_only(options: dict[str, float], value: float) -> None:
    rows = random_logits(2)
    rows[0, 50] = value
    found = sample_batch(rows, [sampler(**options), sampler()])
    assert found == [Sampled(-1), Sampled(int(rows[1].argmax()))]


def test_extreme_temperatures_stay_finite() -> None:
    row = random_logits(1, scale=40.0)[0]
    for temperature in (1e-30, 1e-5, 100.0):
        for options in FILTERS:
            assert 0 <= sampler(temperature=temperature, seed=1, **options).sample(row).token_id < VOCAB
    assert sampler(temperature=1e-30, seed=1).sample(row).token_id == row.argmax()


ROWS = st.lists(st.integers(-30, 30), min_size=1, max_size=400).map(lambda values: np.array(values, np.float32) / 4)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 400))
def test_most_likely_keeps_ties_like_a_full_sort(row: Row, count: int) -> None:
    smallest = np.sort(row)[::-1][min(count, len(row)) - 1]
    expected = [i for i in sorted(range(len(row)), key=lambda i: (-row[i], i)) if row[i] >= smallest]
    assert most_likely(row, count).tolist() == expected


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(ROWS, st.floats(0.01, 0.999), st.sampled_from([0.2, 1.0, 50.0]))
def test_a_large_nucleus_is_the_smallest_set_that_holds_enough(row: Row, top_p: float, temperature: float) -> None:
    everything = np.exp((row.astype(np.float64) - row.max()) / temperature)
    likely = most_likely(row, 3)[:3]
    likely = likely[everything[likely].cumsum() < top_p * everything.sum() * (1 - 1e-5)]
    ids, weights = large_nucleus(row, row.max(), temperature, top_p, likely)
    assert ids[: len(likely)].tolist() == likely.tolist()
    kept, total = everything[ids].sum(), everything.sum()
    assert Counter(ids.tolist()).most_common(1)[0][1] == 1
    assert kept >= top_p * total * (1 - 1e-5)
    assert kept - everything[ids].min() <= top_p * total * (1 + 1e-5), "the least likely one was not needed"
    assert everything[ids].min() >= np.delete(everything, ids).max(initial=0.0)
    np.testing.assert_allclose(weights, everything[ids], rtol=1e-4, atol=1e-30)
