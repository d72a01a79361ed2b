"""A phone that is drawn: it shows one screen after another, and goes on where the asked button is tapped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoglm_export.screens.questions import Question, ask
from autoglm_export.screens.screen import Screen, draw, png, random_screen

SIZE = (1080, 2400)


@dataclass(slots=True)
class Phone:
    """`taps`: in pixels, whatever they met. `num_right`: of the taps that met the button; the screen shown."""

    screens: Sequence[Screen]
    questions: Sequence[Question]
    taps: list[tuple[int, int]] = field(default_factory=list)
    num_right: int = 0

    @classmethod
    def scripted(cls, name: str, num_screens: int) -> Phone:
        """Screens that no training has seen, and one question about each."""
        screens = [random_screen(f"phone {name} {number}", size=SIZE) for number in range(num_screens)]
        return cls(screens, [ask(screen, f"phone {name} {number}") for number, screen in enumerate(screens)])

    @property
    def question(self) -> Question:
        return self.questions[self.num_right]

    def screenshot(self) -> bytes:
        """PNG with an alpha channel, as Android's `screencap` writes it."""
        return png(draw(self.screens[self.num_right]).convert("RGBA"))

    def tap(self, x: int, y: int) -> bool:
        """Whether this pixel is in the asked button; then the next screen is shown."""
        self.taps.append((x, y))
        right = self.question.button.box.contains((x * 1000 / SIZE[0], y * 1000 / SIZE[1]))
        self.num_right += right
        return right


def data_url(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
