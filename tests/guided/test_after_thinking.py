"""Guides that hold after what a model thinks: free text and the closing mark first, then what the guide allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from autoglm_engine.core import SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.guided.after_thinking import resolved
from autoglm_engine.guided.grammar import GuideCompiler, GuideState
from autoglm_engine.options.options import OptionRules
from autoglm_engine.tokenizer.rendering.thinking import PromptThinking, ThinkingMarks
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from tests.support.engine.fakes import byte_tokenizer

EOS = 257  # of `byte_tokenizer`
MARKS = ThinkingMarks("<think>", "</think>")
OPEN, FREE, CLOSED = (PromptThinking(MARKS, *ends) for ends in ((True, False), (False, False), (False, True)))
SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)
GUIDES: list[tuple[dict[str, str], str]] = [
    ({"guided_json": SCHEMA}, '{"a":1}'),
    ({"guided_regex": "[0-9]{2}/x"}, "17/x"),
    ({"guided_grammar": 'start: "(" start? ")"'}, "(())"),
    ({"guided_grammar": '%llguidance {}\nstart: call+\ncall: "<call>" %json {"type": "null"}'}, "<call>null"),
]


def tokenizer(*, has_marks: bool) -> Tokenizer:
    made = Tokenizer.from_str(byte_tokenizer().to_str())
    if has_marks:
        made.add_tokens(["<think>", "</think>"])
    return made


def begun(thinking: PromptThinking | None, made: Tokenizer, **guide: str) -> GuideState:
    sampling = SamplingOptions(max_tokens=64, guide_after="thinking", **guide)  # type: ignore[arg-type]
    sampling = SamplingOptions(max_tokens=64, guide_after=resolved(sampling, thinking), **guide)  # type: ignore[arg-type]
    size = made.get_vocab_size(with_added_tokens=True)
    library = LLTokenizer(made.to_str(), n_vocab=size, eos_token=[EOS])
    grammar = GuideCompiler(lambda: library, size, [EOS]).compile(sampling)
    assert grammar is not None
    return grammar.begin()


def admits(state: GuideState, made: Tokenizer, text: str) -> bool:
    """Whether it may be the whole answer."""
    for token_id in made.encode(text, add_special_tokens=False).ids:
        if not state.allows(token_id):
            return False
        state.count(token_id)
    return state.allows(EOS)


@pytest.mark.parametrize("has_marks", [True, False], ids=["tokens", "letters"])
@pytest.mark.parametrize(("guide", "answer"), GUIDES, ids=["json", "regex", "lark", "calls"])
def test_the_guide_holds_after_thinking(guide: dict[str, str], answer: str, has_marks: bool) -> None:
    made = tokenizer(has_marks=has_marks)
    thought = f"Is it {answer[:-1]}?\n<b>\n"
    for thinking, before, may in (
        (OPEN, f"{thought}</think>", True),
        (OPEN, f"{thought}</think>\n\n", True),
        (OPEN, "</think>", True),
        (OPEN, thought, False),
        (OPEN, "", False),
        (FREE, f"<think>{thought}</think>\n\n", True),
        (FREE, "", True),
        (FREE, thought, False),
        (CLOSED, "", True),
        (CLOSED, f"<think>{thought}</think>", False),
        (None, "", True),
        (None, f"{thought}</think>", False),
    ):
        assert admits(begun(thinking, made, **guide), made, before + answer) == may, (thinking, before)
        assert not admits(begun(thinking, made, **guide), made, f"{before}{answer}!"), (thinking, before)


def test_a_guide_that_is_kept_is_kept_with_what_it_holds_after() -> None:
    made = tokenizer(has_marks=True)
    size = made.get_vocab_size(with_added_tokens=True)
    library = LLTokenizer(made.to_str(), n_vocab=size, eos_token=[EOS])
    guides = GuideCompiler(lambda: library, size, [EOS])
    asked = SamplingOptions(max_tokens=8, guided_regex="a", guide_after="thinking")
    for thinking, answer in ((OPEN, "x</think>a"), (FREE, "<think>x</think>a"), (CLOSED, "a"), (OPEN, "y</think>a")):
        sampling = dataclasses.replace(asked, guide_after=resolved(asked, thinking))
        guide = guides.compile(sampling)
        assert guide is not None and guides.find(sampling) is guide
        assert admits(guide.begin(), made, answer), answer


def test_a_ready_grammar_has_thoughts_of_its_own_and_no_guide_needs_nothing() -> None:
    asked = SamplingOptions(max_tokens=1, guide_after="thinking", guided_grammar="open-autoglm")
    assert resolved(asked, OPEN) == ""
    assert resolved(SamplingOptions(max_tokens=1, guide_after="thinking"), OPEN) == ""
    assert resolved(SamplingOptions(max_tokens=1, guided_regex="a"), OPEN) == ""


def test_a_request_says_thinking_or_nothing() -> None:
    rules = OptionRules(max_length=64, vocab_size=300, defaults={})
    said: dict[str, Any] = {"guide_after": b"thinking", "guided_regex": b"a"}
    assert rules.check(said, prompt_length=1).sampling.guide_after == "thinking"
    with pytest.raises(InvalidRequest, match="guide_after is 'never'; it must be thinking, or empty"):
        rules.check({"guide_after": b"never"}, prompt_length=1)
