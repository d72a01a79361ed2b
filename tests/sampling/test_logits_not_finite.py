"""A row with a logit that is no finite number chooses nothing, in every way of choosing, and the rows beside it what
they would."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Candidates, SamplingOptions
from autoglm_engine.guided.grammar import GuideCompiler
from autoglm_engine.sampling.sampler import Sampled, TokenSampler, sample_batch
from llguidance import LLTokenizer

from tests.support.engine.fakes import assert_same, rank
from tests.support.export.tiny_models import VOCAB_SIZE, write_tokenizer

EOS = (256, 257)
PROMPT = np.array([1, 2, 2, 9], np.int32)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "logprobs": {"logprobs": 5},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "bias": {"logit_bias": ((3, 4.0), (256, -50.0))},
    "bans": {"min_tokens": 5},
    "plain": {"temperature": 0.8, "seed": 1},
    "top-k": {"temperature": 0.8, "seed": 1, "top_k": 20},
    "nucleus": {"temperature": 0.8, "seed": 1, "top_p": 0.7},
    "large nucleus": {"temperature": 5.0, "seed": 1, "top_p": 0.999},
    "min-p": {"temperature": 0.8, "seed": 1, "min_p": 0.05},
    "guided": {"guided_regex": "[a-z]{1,20}"},
    "guided, drawn": {"guided_regex": "[a-z]{1,20}", "temperature": 0.8, "seed": 1, "top_k": 20},
    "guided, logprobs": {"guided_regex": "[a-z]{1,20}", "logprobs": 3},
}
WRONG = {"NaN": np.nan, "infinity": np.inf}


@cache
def guides() -> GuideCompiler:
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        text = (Path(folder) / "tokenizer.json").read_text()
    return GuideCompiler(lambda: LLTokenizer(text, n_vocab=VOCAB_SIZE, eos_token=list(EOS)), VOCAB_SIZE, EOS)


def sampler(**options: Any) -> TokenSampler:
    sampling = SamplingOptions(max_tokens=64, **options)
    return TokenSampler(sampling, PROMPT, EOS, 64, guides().compile(sampling))


def rows(wrong: float, place: int) -> npt.NDArray[np.float32]:
    """Three, the middle one spoilt."""
    made = (3 * np.random.default_rng(5).standard_normal((3, VOCAB_SIZE))).astype(np.float32)
    made[1, place] = wrong
    return made


def on_a_device(logits: npt.NDArray[np.float32], samplers: list[TokenSampler], count: int) -> Candidates:
    factors, offsets = np.ones_like(logits), np.zeros_like(logits)
    inverse = np.ones(len(logits), np.float32)
    for row, each in enumerate(samplers):
        told = each.take_adjustments()
        assert told is not None
        factors[row, told.token_ids], offsets[row, told.token_ids] = told.factors, told.offsets
        inverse[row] = told.inverse_temperature
    return rank(logits, factors, offsets, inverse, count, lambda row: logits[row])


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [0, 8])
def test_a_row_that_is_not_finite_chooses_nothing(way: str, wrong: str, count: int) -> None:
    """At places that a guide allows and forbids, that are penalised, biased, banned, or none of these."""
    for place in (0, 1, 2, 3, 65, 97, 150, 256, VOCAB_SIZE - 1):
        logits = rows(WRONG[wrong], place)
        samplers = [sampler(**WAYS[way]) for _ in range(3)]
        expected = [sampler(**WAYS[way]).sample(logits[row]) for row in (0, 2)]
        found = sample_batch(on_a_device(logits, samplers, count) if count else logits, samplers)
        assert found[1] == Sampled(-1), (place, found[1])
        assert_same([found[0], found[2]], expected)
        assert all(each.token_id >= 0 for each in expected)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_minus_infinity_is_only_never_chosen(way: str) -> None:
    logits = rows(0.0, 0)
    logits[:, 80:140] = -np.inf
    found = sample_batch(logits, [sampler(**WAYS[way]) for _ in range(3)])
    assert all(each.token_id >= 0 and not 80 <= each.token_id < 140 for each in found)
