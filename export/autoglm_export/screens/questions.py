"""What is asked about a drawn screen, and the answers that Open-AutoGLM's agent reads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from random import Random

from .screen import Box, Button, Screen

STEP = 50  # thousandths between two coordinates that the model can say: 25, 75, ... 975
COLOURS_IN_CHINESE = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "cyan": "青色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
}
BY_COLOUR = (
    *(
        "Tap the {colour} button",
        "Tap the {colour} button.",
        "tap the {colour} button",
        "Please tap the {colour} button",
    ),
    *("Press the {colour} button", "Click the {colour} button", "Click on the {colour} button", "Tap {colour}"),
    *(
        "Touch the {colour} button",
        "Tap on the {colour} button",
        "the {colour} button",
        "Tap the button that is {colour}",
    ),
    *("点击{chinese}按钮", "点击{chinese}的按钮", "请点击{chinese}按钮", "按{chinese}按钮"),
)
BY_NUMBER = (
    *("Tap button {number}", "Tap button {number}.", "tap button {number}", "Please tap button {number}"),
    *("Press button {number}", "Click button {number}", "Click on button {number}", "Tap {number}"),
    *("Touch button {number}", "Tap on button {number}", "button {number}", "Tap the button with the number {number}"),
    *("Tap the button numbered {number}", "Press number {number}", "点击{number}号按钮", "点击按钮{number}"),
)
_TAP = re.compile(r'do\(action="Tap", element=\[(\d{1,3}),(\d{1,3})\]')


@dataclass(frozen=True, slots=True)
class Question:
    """`word`: the part of the task that says which button is meant."""

    task: str
    word: str
    button: Button


def ask(screen: Screen, seed: int | str, *, by_number: float = 0.5) -> Question:
    """One of the screen's buttons by its colour or, so often, by its number, in one of the known wordings."""
    rng = Random(f"question {seed}")
    button, wording = rng.choice(screen.buttons), rng.choice(BY_COLOUR if rng.random() < 1 - by_number else BY_NUMBER)
    words = {"colour": button.colour, "number": str(button.number), "chinese": COLOURS_IN_CHINESE[button.colour]}
    word = next(text for name, text in words.items() if f"{{{name}}}" in wording)
    return Question(wording.format(**words), word, button)


def agents_text(task: str | None, app: str) -> str:
    """The text beside a screenshot as the agent writes it; `task`: in the first step of a task only."""
    screen_info = json.dumps({"current_app": app}, ensure_ascii=False)
    return f"{task or '** Screen Info **'}\n\n{screen_info}"


def answer(box: Box) -> str:
    """The tap on the middle of a button, in the coordinates that the model can say."""
    x, y = (coordinate(value) for value in box.centre)
    return f'do(action="Tap", element=[{x},{y}])'


def coordinate(thousandths: float) -> int:
    return int(thousandths) // STEP * STEP + STEP // 2


def tapped(text: str) -> tuple[int, int] | None:
    """Where an answer taps, in thousandths of width and height; None where it does not."""
    found = _TAP.search(text)
    return (int(found[1]), int(found[2])) if found else None
