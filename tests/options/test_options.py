"""The option table: what is inside a range passes, what is outside is refused with value and range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import ArtifactError, InvalidRequest
from autoglm_engine.manifest import CacheShape, Manifest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.options.table import OPTIONS
from hypothesis import given
from hypothesis import strategies as st

RULES = OptionRules(max_length=1024, vocab_size=500, defaults={})
NUMBERS = [name for name, option in OPTIONS.items() if option.low is not None]
HIGH = {"max_length": 1024, "vocab_size": 500, "max_tokens": 256}


def manifest(**generation_defaults: Any) -> Manifest:
    return Manifest(
        model_name="m",
        family="llama",
        runtime="onnx",
        runtime_version="1",
        precision="fp32",
        num_slots=4,
        max_length=1024,
        prefill_chunk=64,
        vocab_size=500,
        cache=CacheShape(1, 1, 8, "fp32"),
        eos_token_ids=(2,),
        bos_token_id=None,
        generation_defaults=generation_defaults,
        spec={},
    )


def check(prompt_length: int = 10, **values: Any) -> SamplingOptions:
    return RULES.check(values, prompt_length=prompt_length).sampling


def bounds(name: str) -> tuple[float, float]:
    option = OPTIONS[name]
    assert isinstance(option.low, (int, float))
    high = HIGH[option.high] if isinstance(option.high, str) else option.high
    assert high is not None
    return option.low, high


def test_nothing_set_gives_the_defaults() -> None:
    checked = RULES.check({}, prompt_length=10)
    assert checked.sampling == SamplingOptions(max_tokens=256)
    assert (checked.stream, checked.deadline_ms, checked.user) == (False, None, "")


def test_the_table_holds_every_sampling_option() -> None:
    names = {field.name for field in dataclasses.fields(SamplingOptions)}
    assert names | {
        "stream",
        "deadline_ms",
        "heartbeat_ms",
        "priority",
        "prompt_lookup",
        "cache",
        "tenant",
        "user",
        "semantic",
    } == set(OPTIONS)


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_a_range(name: str) -> None:
    low, high = bounds(name)
    whole = OPTIONS[name].dtype.startswith("INT")
    RULES.check({name: int(high) if whole else float(high)}, prompt_length=10)
    above = int(high) + 1 if whole else math.nextafter(high, math.inf)
    below = int(low) - 1 if whole else math.nextafter(low, -math.inf)
    outside = [above, below, *([low] if OPTIONS[name].low_open else []), *([] if whole else [math.nan, math.inf])]
    if not OPTIONS[name].low_open:
        RULES.check({name: low}, prompt_length=10)
    for value in outside:
        with pytest.raises(InvalidRequest, match=rf"^{name} is .*; it must be .*\d"):
            RULES.check({name: value}, prompt_length=10)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": -1.0}, "temperature is -1; it must be between 0 and 100"),
        ({"temperature": math.nan}, "temperature is nan; it must be between 0 and 100"),
        ({"top_p": 0.0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be between 1 and 1024 (max_length)"),
        ({"max_tokens": 10**9}, "max_tokens is 1000000000; it must be between 1 and 1024 (max_length)"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens is 6; it must be between 0 and 5 (max_tokens)"),
        ({"seed": -1}, "seed is -1; it must be between 0 and 9223372036854775807"),
        ({"stop": [b"x"] * 10_000}, "stop has 10000 strings; at most 16 are allowed"),
        ({"stop": [b"x", b""]}, "stop[1] has 0 characters; 1 to 256 are allowed"),
        ({"stop": [b"x" * 257]}, "stop[0] has 257 characters; 1 to 256 are allowed"),
        ({"stop": [b"\xff"]}, "stop[0] is not valid UTF-8: byte 0xff at 0"),
        ({"user": b"x" * 257}, "user has 257 characters; at most 256 are allowed"),
        ({"user": b"a\xff"}, "user is not valid UTF-8: byte 0xff at 1"),
    ],
)
def test_a_refusal_names_value_and_range(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        RULES.check(values, prompt_length=10)
    assert str(refusal.value) == sentence


def test_default_max_tokens_shrinks_to_the_room_in_the_slot() -> None:
    assert check(prompt_length=1000).max_tokens == 24
    assert check(prompt_length=1000, max_tokens=500).max_tokens == 500  # asked for: ends with the slot


def test_stop_strings_are_characters_not_bytes() -> None:
    assert check(stop=["好".encode() * 256]).stop == ("好" * 256,)


def test_a_user_is_text() -> None:
    assert RULES.check({"user": "好".encode()}, prompt_length=10).user == "好"


@given(st.binary(max_size=40))
def test_any_bytes_as_stop_are_taken_or_refused(raw: bytes) -> None:
    try:
        stops = check(stop=[raw]).stop
    except InvalidRequest:
        return
    assert stops[0].encode() == raw


def test_defaults_of_the_checkpoint() -> None:
    rules = OptionRules.of(manifest(temperature=0.6, top_p=0.9))
    assert rules.check({}, prompt_length=1).sampling.temperature == 0.6
    assert rules.check({"temperature": 0.0}, prompt_length=1).sampling.temperature == 0.0


@pytest.mark.parametrize("defaults", [{"top_p": 0.0}, {"temperature": math.nan}, {"seed": 1}, {"unknown": 1}])
def test_wrong_defaults_of_a_checkpoint_are_refused_at_load(defaults: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="generation defaults are wrong"):
        OptionRules.of(manifest(**defaults))


def test_the_engine_checks_again_what_reaches_it_directly() -> None:
    RULES.recheck(SamplingOptions(max_tokens=5, temperature=1, stop=("x",), seed=None))
    for wrong in (
        {"temperature": "hot"},
        {"temperature": math.nan},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"ignore_eos": 1},
        {"seed": "x"},
        {"stop": ("",)},
        {"top_k": 501},
    ):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            RULES.recheck(SamplingOptions(**{"max_tokens": 5, **wrong}))  # type: ignore[arg-type]
