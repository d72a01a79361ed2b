"""Thinking told apart from what is said, whatever the pieces that the text comes in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from autoglm_client import ModelLimits, ThinkingMarks
from autoglm_gateway.reasoning.formats import FORMATS, marks_of
from autoglm_gateway.reasoning.splitter import ThinkingSplitter
from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.model import REASONING_FORMATS, GatewaySettings
from hypothesis import given
from hypothesis import strategies as st

THINK, BOTH = FORMATS["think"], FORMATS["think-answer"]
PARTS = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<thi", "</", "nk>", "<", ">", " ", "\n\n", "a", "Zürich", "{}"]
)


def split(pieces: list[str], marks: ThinkingMarks = THINK, *, is_open: bool = False) -> tuple[str, str]:
    splitter = ThinkingSplitter(marks, is_open=is_open)
    told = [*map(splitter.push, pieces), splitter.close()]
    return "".join(one.reasoning for one in told), "".join(one.content for one in told)


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nOne and two.\n</think>\n\nThree.", False, ("One and two.", "Three.")),
        ("One and two.\n</think>\n\nThree.", True, ("One and two.", "Three.")),
        ("<think>\nOne.</think>Three.", True, ("One.", "Three.")),  # opened twice
        ("\n <think>a</think> b \n", False, ("a", "b \n")),
        ("<think>\n\n</think>\n\nThree.", False, ("", "Three.")),
        ("</think>Three.", True, ("", "Three.")),
        ("One, a < b and </th", True, ("One, a < b and </th", "")),  # cut short
        ("<think>One", False, ("One", "")),
        ("<think", False, ("", "<think")),
        (" \nThree. <think>a</think>", False, ("", " \nThree. <think>a</think>")),
        ("Three.", False, ("", "Three.")),
        ("<think>a</think><think>b</think>c", False, ("a", "<think>b</think>c")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
        ("<think>a  \n  b </think>", False, ("a  \n  b", "")),
        ("", True, ("", "")),
        ("", False, ("", "")),
        (" ", False, ("", " ")),
    ],
)
def test_what_is_thought_and_what_is_said(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split([text], is_open=is_open) == expected
    assert split(list(text), is_open=is_open) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>do(action='Home')</answer>", ("a", "do(action='Home')")),
        ("<think>a</think>\n<answer>\n b </answer>\n", ("a", "b")),
        ("<think>a</think><answer>b", ("a", "b")),
        ("<think>a</think>b</answer>", ("a", "b</answer>")),
        ("<answer>b</answer>", ("", "<answer>b</answer>")),
        ("<think>a</think><answer>b</answer> c", ("a", "b c")),
    ],
)
def test_the_marks_around_an_answer_are_dropped_after_thinking(text: str, expected: tuple[str, str]) -> None:
    assert split([text], BOTH) == split(list(text), BOTH) == expected


@given(
    st.lists(PARTS, max_size=12),
    st.lists(st.integers(0, 60), max_size=8),
    st.booleans(),
    st.sampled_from([THINK, BOTH]),
)
def test_any_cutting_tells_the_same(parts: list[str], cuts: list[int], is_open: bool, marks: ThinkingMarks) -> None:
    text = "".join(parts)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    assert (
        split(pieces, marks, is_open=is_open)
        == split([text], marks, is_open=is_open)
        == split(list(text), marks, is_open=is_open)
    )


@given(st.text("abc <>/\n", max_size=30), st.text("abc <>/\n", max_size=30))
def test_what_a_template_wrote_is_read_back(thought: str, said: str) -> None:
    text = f"<think>\n{thought}\n</think>\n\n{said}"
    assert split(list(text)) == (thought.strip(), said.lstrip())


def test_the_setting_says_whose_marks_hold() -> None:
    limits = ModelLimits(8, 8, 1, thinking=ThinkingMarks("[THINK]", "[/THINK]"))
    assert marks_of("auto", limits) == limits.thinking and marks_of("auto", ModelLimits(8, 8, 1)) is None
    assert marks_of("off", limits) is None and marks_of("think", limits) == THINK
    assert ("auto", "off", *FORMATS) == REASONING_FORMATS
    with pytest.raises(SettingsError, match="reasoning_format is 'on'; it must be one of auto, off, think"):
        GatewaySettings(reasoning_format="on")
