"""Stop strings over token boundaries: the first complete one ends the text, nothing of it is ever released."""

from __future__ import annotations

import pytest
from autoglm_engine.tokenizer.incremental import Piece
from autoglm_engine.tokenizer.stop_strings import StopMatcher
from hypothesis import given, settings
from hypothesis import strategies as st


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool, int]:
    """(text after each release, whether a stop string was found, tokens released)."""
    matcher = StopMatcher(stops)
    texts, num_tokens = [], 0
    for i, text in enumerate(pieces):
        release = matcher.push(Piece((i,), text))
        texts.append(release.text)
        num_tokens += len(release.token_ids)
        if release.matched:
            return texts, True, num_tokens
    release = matcher.flush()
    return [*texts, release.text], False, num_tokens + len(release.token_ids)


@pytest.mark.parametrize(
    ("stops", "pieces", "released", "matched"),
    [
        pytest.param(("END",), ["a", "b"], ["a", "b", ""], False, id="nothing to hold"),
        pytest.param(("END",), ["aE", "N", "D", "x"], ["", "", "a"], True, id="over three tokens"),
        pytest.param(("END",), ["aE", "x"], ["", "aEx", ""], False, id="held, then released"),
        pytest.param(("END",), ["E", "EN", "DE"], ["", "E", ""], True, id="a second beginning inside the first"),
        pytest.param(("\n\n",), ["a\n", "b\n", "\nc"], ["", "a\n", "b"], True, id="newlines"),
        pytest.param(("abc", "b"), ["a", "b"], ["", "a"], True, id="the first complete one wins"),
        pytest.param(("bc", "abc"), ["ab", "c"], ["", ""], True, id="complete together: the earliest place"),
        pytest.param(("停止",), ["好停", "止"], ["", "好"], True, id="characters of several bytes"),
        pytest.param(("x",), ["x"], [""], True, id="at once"),
        pytest.param(("END",), ["a", "EN"], ["a", "", "EN"], False, id="the end of the text decides"),
    ],
)
def test_releases(stops: tuple[str, ...], pieces: list[str], released: list[str], matched: bool) -> None:
    assert run(stops, pieces)[:2] == (released, matched)


TEXT = st.text("abc", max_size=3)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(TEXT, max_size=15))
def test_equals_looking_at_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    expected, found = "".join(pieces), False
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        if places := [text.find(stop) for stop in stops if stop in text]:
            expected, found = text[: min(places)], True
            break
    texts, matched, num_tokens = run(tuple(stops), pieces)
    assert ("".join(texts), matched) == (expected, found)
    assert num_tokens == (count if found else len(pieces)), "a token was lost"


class Counted(str):
    """Counts how often it is compared."""

    num_compared = 0

    def startswith(self, *args: object) -> bool:
        self.num_compared += 1
        return super().startswith(*args)  # type: ignore[arg-type]


def test_what_one_stop_string_holds_back_is_not_compared_with_the_others_again() -> None:
    """16 strings of 256 characters, of which one goes on matching: each token costs what is new of it."""
    held, others = "a" * 255 + "b", [Counted(f"{i}b" + "a" * 200) for i in range(15)]
    matcher = StopMatcher((held, *others))
    for i in range(250):
        assert matcher.push(Piece((i,), "a")).token_ids == ()
    assert all(stop.num_compared <= 250 for stop in others)
    assert matcher.push(Piece((250,), "x")).token_ids == tuple(range(251))


def test_equal_stop_strings_are_one() -> None:
    stop = Counted("ab")
    matcher = StopMatcher((stop, *["ab"] * 15))
    texts = [matcher.push(Piece((i,), text)).text for i, text in enumerate(("xa", "xa"))]
    assert texts == ["", "xa"] and stop.num_compared <= 4
    assert len(matcher._stops) == 1
