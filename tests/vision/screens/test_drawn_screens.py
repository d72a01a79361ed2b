"""Drawn screens and the questions about them: the same from the same seed, and true of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from autoglm_export.screens.questions import BY_COLOUR, BY_NUMBER, STEP, answer, ask, tapped
from autoglm_export.screens.screen import COLOURS, PHONES, draw, png, random_screen, with_tap
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 10**9)


@given(seeds)
def test_buttons_differ_do_not_touch_and_lie_on_the_screen(seed: int) -> None:
    screen = random_screen(seed)
    assert screen == random_screen(seed) and screen.size in PHONES and 2 <= len(screen.buttons) <= 6
    assert len({button.colour for button in screen.buttons}) == len(screen.buttons)
    assert len({button.number for button in screen.buttons}) == len(screen.buttons)
    for button in screen.buttons:
        box = button.box
        assert 0 <= box.left < box.right <= 1000 and 0 <= box.top < box.bottom <= 1000
        others = [other.box for other in screen.buttons if other is not button]
        assert not any(
            box.left < other.right and other.left < box.right and box.top < other.bottom and other.top < box.bottom
            for other in others
        )


@given(seeds)
def test_the_answer_to_a_question_is_a_tap_inside_its_button(seed: int) -> None:
    screen = random_screen(seed)
    question = ask(screen, seed)
    asked = [button for button in screen.buttons if str(button.number) in question.task] or [question.button]
    assert asked == [question.button]
    point = tapped(answer(question.button.box))
    assert point is not None and question.button.box.contains(point)
    assert all(value % STEP == STEP // 2 for value in point)


def test_a_button_is_drawn_where_it_says_and_in_its_colour() -> None:
    screen = random_screen(7, size=(1080, 2400))
    pixels = np.asarray(draw(screen))
    assert pixels.shape == (2400, 1080, 3)
    for button in screen.buttons:
        left, top, _, bottom = button.box.pixels(screen.size)
        assert tuple(pixels[(top + bottom) // 2, left + 3]) == button.shade
        assert tuple(pixels[(top + bottom) // 2, left - 5]) != button.shade
        assert np.abs(np.array(button.shade) - COLOURS[button.colour]).max() <= 14


def test_every_wording_is_asked() -> None:
    screen = random_screen(1)
    asked = {ask(screen, seed).task for seed in range(3000)}
    assert len(asked) == len(BY_COLOUR + BY_NUMBER) * len(screen.buttons)


@pytest.mark.parametrize("text", ["", 'do(action="Back")', 'finish(message="done")', 'do(action="Tap", element=[x,y])'])
def test_what_taps_nowhere_is_no_tap(text: str) -> None:
    assert tapped(text) is None


def test_a_tap_is_drawn_on_a_copy() -> None:
    image = draw(random_screen(3, size=(720, 1600)))
    before = png(image)
    marked = with_tap(image, (500, 250))
    changed = np.argwhere((np.asarray(marked) != np.asarray(image)).any(axis=2))
    assert png(image) == before and abs(changed.mean(axis=0) - (400, 360)).max() < 2
