"""The small model that sees drawn screens: ours answers as transformers does, taps inside the asked button, and follows
it when it moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Literal

import pytest
from autoglm_export.screens.checkpoint import CHECKPOINT
from autoglm_export.screens.questions import tapped
from autoglm_export.screens.screen import COLOURS, Box, Button, Screen, draw, png
from autoglm_perf.vision_model.answering import EngineAnswers, TransformersAnswers
from autoglm_perf.vision_model.asked import Asked, held_out, is_inside, with_screenshot
from autoglm_perf.vision_model.held_out import divergence
from autoglm_perf.vision_model.opened import OpenedArtifact

from tests.support.vision.screens_model import screens_artifact

pytestmark = pytest.mark.parity
SCREENS = [held_out(number) for number in range(40)]


def test_the_checkpoint_is_small_and_of_16_bits() -> None:
    (weights,) = CHECKPOINT.glob("*.safetensors")
    assert 3e6 < weights.stat().st_size < 8e6
    assert b'"F16"' in weights.read_bytes()[:50_000] and b'"F32"' not in weights.read_bytes()[:50_000]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine(request: pytest.FixtureRequest) -> Iterator[EngineAnswers]:
    with closing(EngineAnswers(OpenedArtifact.open(screens_artifact(request.param)))) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> list[str]:
    reference = TransformersAnswers(CHECKPOINT)
    return [reference.answer(asked).text for asked in SCREENS]


def test_ours_taps_where_transformers_does(engine: EngineAnswers, expected: list[str]) -> None:
    """On 1,000 screens `make held-out-screens` counts; here one button may be missed in forty."""
    said = engine.answers(SCREENS)
    theirs, ours = (sum(map(is_inside, SCREENS, answers)) for answers in (expected, said))
    assert theirs >= 38 and abs(ours - theirs) <= 1
    assert sum(map(str.__eq__, said, expected)) >= 38


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("int8", 1e-2)])
def test_an_answers_logits_are_near_those_of_transformers(precision: Literal["fp32", "int8"], most: float) -> None:
    """KL in nats, of the worst token; about another screen the answer is nothing that the model would say."""
    reference = TransformersAnswers(CHECKPOINT)
    first, second = SCREENS[:2]
    answer = reference.answer(first)
    with closing(OpenedArtifact.open(screens_artifact(precision))) as opened:
        found = divergence(opened, first, answer)
        assert len(found) == len(answer.token_ids) and found.min() > -1e-9 and found.max() < most
        assert divergence(opened, replace(first, screenshot=second.screenshot), answer).max() > 10 * most


def page(*buttons: tuple[str, int, Box]) -> Screen:
    return Screen(
        (1080, 2400), (250, 250, 250), tuple(Button(name, COLOURS[name], no, box) for name, no, box in buttons)
    )


def ask(screen: Screen, task: str, colour: str) -> Asked:
    return Asked(with_screenshot(task), png(draw(screen)), screen.button(colour=colour).box)


def test_the_tap_follows_the_button(engine: EngineAnswers) -> None:
    """Equal size, equal text, another place: each its own tap."""
    other = ("blue", 4, Box(80, 850, 420, 960))
    places = [Box(left, top, left + 300, top + 120) for left in (60, 350, 640) for top in (100, 300, 500, 690)]
    asked = [ask(page(("red", 7, place), other), "Tap the red button", "red") for place in places]
    points = [tapped(answer) for answer in engine.answers(asked)]
    assert sum(map(is_inside_of, asked, points)) >= len(places) - 1
    assert len(set(points)) >= len(places) - 1


def is_inside_of(asked: Asked, point: tuple[int, int] | None) -> bool:
    return point is not None and asked.target.contains(point)


def test_colours_that_change_places_change_the_tap(engine: EngineAnswers) -> None:
    """Only pixels differ: the red button is now where the green one was."""
    upper, lower = Box(100, 200, 450, 320), Box(550, 700, 900, 820)
    before = page(("red", 2, upper), ("green", 5, lower))
    after = replace(before, buttons=page(("green", 2, upper), ("red", 5, lower)).buttons)
    first, second = engine.answers([ask(one, "Tap the red button", "red") for one in (before, after)])
    assert upper.contains(tapped(first) or (0, 0)) and lower.contains(tapped(second) or (0, 0))


def test_the_question_chooses_among_the_buttons_of_one_screen(engine: EngineAnswers) -> None:
    boxes = [Box(80, 120 + 200 * row, 400, 240 + 200 * row) for row in range(4)]
    screen = page(*zip(("red", "yellow", "green", "blue"), (1, 2, 3, 4), boxes, strict=True))
    asked = [ask(screen, f"Tap the {name} button", name) for name in ("red", "yellow", "green", "blue")]
    assert all(map(is_inside, asked, engine.answers(asked)))
