"""Drafts out of what was said before."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_engine.engine.speculation.prompt_lookup import PromptLookup
from hypothesis import given
from hypothesis import strategies as st


def draft(tokens: list[int], most: int, longest: int = 3) -> list[int]:
    return PromptLookup(np.array(tokens, np.int32), longest).draft(len(tokens), most).tolist()


@pytest.mark.parametrize(
    ("tokens", "most", "found"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], 4, [4, 5, 9, 1]),
        ([1, 2, 3, 4, 7, 2, 3, 5, 1, 2, 3], 1, [4]),  # three alike go before two that came later
        ([2, 3, 4, 7, 2, 3, 5, 1, 2, 3], 1, [5]),  # of equals the last
        ([1, 2, 3], 4, []),
        ([3, 3, 3, 3], 4, [3, 3, 3, 3]),
        ([1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),
        ([1], 3, []),
        ([1, 2, 1], 3, []),  # one token alike is none
        ([1, 2, 1, 2], 0, []),
    ],
)
def test_what_followed(tokens: list[int], most: int, found: list[int]) -> None:
    assert draft(tokens, most) == found


def test_one_token_where_that_is_asked_for() -> None:
    assert draft([1, 2, 1], 2, longest=1) == [2, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.data())
def test_an_index_that_grows_finds_what_a_search_finds(tokens: list[int], longest: int, data: st.DataObject) -> None:
    """Whatever lies in the row past the sequence: drafts are written there, and rejected."""
    row = np.full(80, 1, np.int32)
    lookup = PromptLookup(row, longest)
    end = 0
    while end < len(tokens):
        grown = data.draw(st.integers(end + 1, len(tokens)))
        row[end:grown] = tokens[end:grown]
        row[grown:] = data.draw(st.integers(0, 3))
        end = grown
        assert lookup.draft(end, 6).tolist() == searched(tokens[:end], longest, 6)


def searched(tokens: list[int], longest: int, most: int) -> list[int]:
    for length in range(longest, min(2, longest) - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if len(tokens) > length and tokens[start : start + length] == tokens[-length:]:
                said = list(tokens)
                for place in range(start + length, start + length + most):
                    said.append(said[place])
                return said[len(tokens) :]
    return []
