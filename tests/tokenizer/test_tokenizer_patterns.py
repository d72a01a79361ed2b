"""Which regular expressions of a tokenizer are taken to be quick by their form alone."""

from __future__ import annotations

import json

import pytest
from autoglm_engine.tokenizer.patterns import is_tame, patterns_of

PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3, GLM-4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "Qwen 2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|"
        r"'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "OLMo": r"\d{1,3}(?=(?:\d{3})*\b)",
    "BLOOM": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "CLIP": r"<\|startoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "SentencePiece's spaces": " {2,}",
    "possessive, lazy, atomic": r"\p{L}++|\s+?|(?>\d+)x",
    "flags": r"(?i)(?x)\w+",
    "a class of brackets": r"[]()*+]+|[^]+*]+",
}
BOMBS = (
    r"(a+)+$",
    r"(?:a|aa)+b",
    r"([a-z]+)*\d",
    r"(\p{L}+\s?)*\?",
    r"((?:\w+)x?)+",
    r"(?<word>a*)*b",
    r"(a?){30}a{30}|(a|b?)*c",
    r"(a+){2,}b",
    r"\w+\d+\w+\d+@",
    r"(a+)\1+",
    r"(?<x>a\g<x>?b)",
    r"(a+",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_are_tame(name: str) -> None:
    assert is_tame(PUBLISHED[name])


@pytest.mark.parametrize("pattern", BOMBS)
def test_what_may_match_in_several_ways_and_repeats_is_not(pattern: str) -> None:
    assert not is_tame(pattern)


def test_patterns_are_found_wherever_they_stand() -> None:
    split = {"type": "Split", "pattern": {"Regex": "b+"}, "behavior": "Isolated", "invert": False}
    state = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "Split", "pattern": {"String": "no"}}, split],
        },
        "decoder": {"type": "Replace", "pattern": {"Regex": "c"}, "content": ""},
        "model": {"vocab": {"Regex": 1}},
    }
    assert patterns_of(json.dumps(state)) == ["a", "b+"]
    assert patterns_of(json.dumps(state), ("decoder",)) == ["c"]
    assert patterns_of("{}") == []
