"""Numbers at the ends of their ranges, and at those of float32: taken and answered, or refused in a sentence."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.options.table import OPTIONS
from autoglm_engine.sampling.penalties import Penalties
from autoglm_engine.sampling.sampler import TokenSampler
from autoglm_engine.triton.tokenizer_model import read_value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import NUM_CANDIDATES, VOCAB, Bench
from tests.support.engine.fakes import fake_logits, request

RULES = OptionRules(max_length=64, vocab_size=VOCAB, defaults={})
FLOATS = [name for name, option in OPTIONS.items() if option.dtype == "FP32"]
FLOAT32 = np.finfo(np.float32)
MAGNITUDES = [
    0.0,
    5e-324,
    1e-45,
    1e-39,
    2e-39,
    float(FLOAT32.tiny),
    1e-37,
    1e-30,
    1e-5,
    0.5,
    float(np.nextafter(np.float32(1), np.float32(0))),
    1.0,
    2.0,
    10.0,
    100.0,
    float(FLOAT32.max),
    math.inf,
]
EXTREMES = [sign * size for size in MAGNITUDES for sign in (1.0, -1.0)] + [math.nan]
SCALES = [1e-3, 1.0, 1e3]  # of the model's logits


def through_the_door(values: dict[str, float]) -> SamplingOptions:
    """As a caller's tensors reach it."""
    tensors = {name: np.array([[value]], np.float32) for name, value in values.items()}
    return RULES.check({name: read_value(name, tensor) for name, tensor in tensors.items()}, prompt_length=3).sampling


def answer(num_candidates: int, options: SamplingOptions, scale: float) -> tuple[int, ...]:
    """Warnings are errors here, so nothing overflows on the way."""

    def model(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
        return (fake_logits(tokens, vocab_size) - np.float32(4)) * np.float32(scale)

    bench = Bench(num_candidates)
    bench.runner.model = model
    bench.run(request(**{name: getattr(options, name) for name in options.__dataclass_fields__}))
    (event,) = bench.events
    assert event.error is None, event.error
    return event.token_ids


def check(values: dict[str, float], scale: float, **others: Any) -> None:
    try:
        options = through_the_door(values)
    except InvalidRequest as error:
        assert re.fullmatch(r"\w+ is \S+; it must be (between|above) .*", str(error))
        return
    RULES.recheck(options)
    changed = {"max_tokens": 6, "ignore_eos": True, "seed": 3, **others}
    options = SamplingOptions(**{name: getattr(options, name) for name in values} | changed)
    found = [answer(num_candidates, options, scale) for num_candidates in NUM_CANDIDATES]
    assert len(found[0]) == 6 and found[0] == found[1], "a device's candidates give another answer"


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.1e-5])
@pytest.mark.parametrize("name", FLOATS)
def test_any_number_is_answered_or_refused(name: str, temperature: float) -> None:
    for value in EXTREMES:
        check({"temperature": temperature, name: value}, 1.0)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FLOATS), st.sampled_from(EXTREMES[:-3]), min_size=1),
    st.sampled_from(SCALES),
    st.sampled_from([0, 1, VOCAB]),
    st.sampled_from([0, 20]),
)
def test_any_numbers_together(values: dict[str, float], scale: float, top_k: int, logprobs: int) -> None:
    check(values, scale, top_k=top_k, logprobs=logprobs)


@pytest.mark.parametrize("penalty", [5e-324, 1e-45, 1e-39, 2e-39, 1e-38])
def test_a_tiny_repetition_penalty_repeats_and_is_nobodys_fault(penalty: float) -> None:
    """What was said is far ahead of what was not."""
    options = SamplingOptions(max_tokens=4, repetition_penalty=penalty)
    logits = np.array([-3.0, 9.0, 2.0, 30.0, 0.0], np.float32)
    sampler = TokenSampler(options, np.array([4, 3, 2, 0], np.int32), (), 4)
    assert sampler.sample(logits).token_id == 3
    row = logits.copy()
    Penalties(options, np.array([4, 3, 2, 0], np.int32), (), 4).apply(row)
    assert np.isfinite(row).all()


def test_a_penalty_hides_no_logit_that_is_no_number() -> None:
    for broken in (np.nan, np.inf):
        sampler = TokenSampler(SamplingOptions(4, repetition_penalty=1e-39), np.array([0, 1], np.int32), (), 4)
        assert sampler.sample(np.array([broken, 9.0, 2.0], np.float32)).token_id == -1


def test_a_large_vocabulary_of_which_a_penalty_lifts_some_beyond_all_others() -> None:
    """A nucleus of more tokens than are looked at first."""
    logits = np.linspace(1.0, 2.0, 5000, dtype=np.float32)
    options = SamplingOptions(4, temperature=1.0, top_p=0.9, repetition_penalty=1e-39, seed=1)
    said = np.arange(1000, dtype=np.int32)
    assert TokenSampler(options, said, (), 4).sample(logits).token_id < 1000


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63], ids=["400 digits", "negative", "64 bits"])
def test_a_whole_number_of_many_digits_is_refused_in_a_short_sentence(value: int) -> None:
    for name in ("max_tokens", "top_k", "seed", "temperature"):
        with pytest.raises(InvalidRequest) as refusal:
            RULES.recheck(SamplingOptions(**{"max_tokens": 5, name: value}))
        assert len(str(refusal.value)) < 150


def test_the_smallest_float32_is_not_zero_at_the_door() -> None:
    smallest = struct.unpack("<f", struct.pack("<I", 1))[0]
    assert through_the_door({"repetition_penalty": smallest}).repetition_penalty == smallest
    with pytest.raises(InvalidRequest, match="repetition_penalty is 0; it must be above 0 and at most 10"):
        through_the_door({"repetition_penalty": smallest / 4})
