"""Held-out screens, and what is asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoglm_export.screens.questions import ask, tapped
from autoglm_export.screens.screen import Box, Screen, draw, png, random_screen

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation whose last turn has the screenshot, and the button that its answer should tap."""

    messages: list[Message]
    screenshot: bytes  # PNG
    target: Box


def held_out(number: int, *, screen: Screen | None = None) -> Asked:
    """A screen that no training has seen, at its phone's size, and one question about it."""
    screen = screen or random_screen(f"held out {number}")
    question = ask(screen, f"held out {number}")
    return Asked(with_screenshot(question.task), png(draw(screen)), question.button.box)


def with_screenshot(text: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def is_inside(asked: Asked, answer: str) -> bool:
    point = tapped(answer)
    return point is not None and asked.target.contains(point)
