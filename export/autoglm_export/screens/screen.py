"""Phone screens from a seed: buttons of different colours and numbers on a plain page.

A place is in thousandths of the screen's width and height, as Open-AutoGLM reads coordinates. A screen can be drawn at
any size, so that one that was drawn small differs from a large one scaled down by little more than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Size = tuple[int, int]  # width, height in pixels

COLOURS: dict[str, Colour] = {
    "red": (222, 40, 38),
    "orange": (250, 140, 10),
    "yellow": (246, 222, 40),
    "green": (38, 160, 62),
    "cyan": (30, 200, 215),
    "blue": (36, 84, 226),
    "purple": (132, 52, 190),
    "pink": (246, 120, 190),
}
NUMBERS = range(1, 10)
PHONES: tuple[Size, ...] = ((1080, 2400), (1080, 2340), (1080, 1920), (720, 1600), (1170, 2532), (1440, 3200))

_WIDTHS, _HEIGHTS = (230, 480), (88, 150)  # of a button
_MARGIN, _TOP, _BOTTOM, _GAP = 20, 60, 975, 16
_CROWD = (4, 9)  # columns and rows
_SHADE = 14  # how far a channel may lie from the colour's
_SHARPER = 4  # badges are drawn this much larger, then scaled down


@dataclass(frozen=True, slots=True)
class Box:
    """In thousandths of the screen; the right and bottom edges are outside."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def contains(self, point: tuple[float, float]) -> bool:
        return self.left <= point[0] < self.right and self.top <= point[1] < self.bottom

    def pixels(self, size: Size) -> tuple[int, int, int, int]:
        """First and last columns and rows that are inside, as Pillow takes them: left, top, right, bottom."""
        wide, high = size[0] / 1000, size[1] / 1000
        left, top = round(self.left * wide), round(self.top * high)
        return left, top, round(self.right * wide) - 1, round(self.bottom * high) - 1


@dataclass(frozen=True, slots=True)
class Button:
    colour: str
    shade: Colour  # what it is filled with, near to its colour
    number: int
    box: Box


@dataclass(frozen=True, slots=True)
class Screen:
    """`size`: of the phone. `lines`: grey bars where a page has its text."""

    size: Size
    page: Colour
    buttons: tuple[Button, ...]
    lines: tuple[Box, ...] = ()

    def button(self, *, colour: str | None = None, number: int | None = None) -> Button:
        """The one of this colour, or of this number. Raises KeyError where there is none."""
        for button in self.buttons:
            if button.colour == colour or button.number == number:
                return button
        raise KeyError(f"this screen has no button {colour or number}")


def random_screen(seed: int | str, *, size: Size | None = None, num_buttons: int | None = None) -> Screen:
    """The same for the same arguments everywhere. No two buttons have a colour or a number in common, and none touch.

    `size`: one of `PHONES` unless given. `num_buttons`: two to six unless given; at most eight.
    """
    rng = Random(f"screen {seed}")
    size = size or rng.choice(PHONES)
    boxes = _boxes(rng, num_buttons or rng.randint(2, 6))
    colours, numbers = rng.sample(list(COLOURS), len(boxes)), rng.sample(NUMBERS, len(boxes))
    buttons = [
        Button(name, _shade(rng, name), number, box) for name, number, box in zip(colours, numbers, boxes, strict=True)
    ]
    return Screen(size, _page(rng), tuple(buttons), tuple(_lines(rng, boxes)))


def crowded_screen(seed: int | str, *, size: Size) -> Screen:
    """To learn from: rows full of small buttons, whose colours and numbers come again."""
    rng = Random(f"crowded screen {seed}")
    boxes = []
    for row in range(_CROWD[1]):
        for column in range(_CROWD[0]):
            width, height = rng.uniform(180, 235), rng.uniform(82, 96)
            left = 20 + column * 240 + rng.random() * (240 - width)
            top = 30 + row * 104 + rng.random() * (104 - height)
            boxes.append(Box(left, top, left + width, top + height))
    names = rng.choices(list(COLOURS), k=len(boxes))
    buttons = [
        Button(name, _shade(rng, name), rng.choice(NUMBERS), box) for name, box in zip(names, boxes, strict=True)
    ]
    return Screen(size, _page(rng), tuple(buttons))


def draw(screen: Screen, size: Size | None = None) -> Image.Image:
    """RGB, at the phone's size unless another is given."""
    size = size or screen.size
    image = Image.new("RGB", size, screen.page)
    pen = ImageDraw.Draw(image)
    grey = _towards_grey(screen.page)
    for line in screen.lines:
        pen.rectangle(line.pixels(size), fill=grey)
    for button in screen.buttons:
        _draw_button(image, button, size)
    return image


def png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def with_tap(image: Image.Image, point: Sequence[float]) -> Image.Image:
    """A copy with a ring and a cross where the tap is. `point`: in thousandths."""
    marked = image.convert("RGB")
    wide, high = marked.size
    x, y, radius = point[0] * wide / 1000, point[1] * high / 1000, wide / 18
    pen = ImageDraw.Draw(marked)
    for colour, width in (("white", wide // 90), ("black", wide // 200)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
        pen.line((x - radius / 2, y, x + radius / 2, y), fill=colour, width=width)
        pen.line((x, y - radius / 2, x, y + radius / 2), fill=colour, width=width)
    return marked


def _boxes(rng: Random, count: int) -> list[Box]:
    """Places that do not touch; each is tried until it fits, all anew where one found no room."""
    found: list[Box] = []
    for _ in range(400):
        width, height = rng.uniform(*_WIDTHS), rng.uniform(*_HEIGHTS)
        left, top = rng.uniform(_MARGIN, 1000 - _MARGIN - width), rng.uniform(_TOP, _BOTTOM - height)
        box = Box(left, top, left + width, top + height)
        if not any(_near(box, other) for other in found):
            found.append(box)
        if len(found) == count:
            return found
    return _boxes(rng, count)


def _near(one: Box, other: Box) -> bool:
    across = one.left - _GAP < other.right and other.left - _GAP < one.right
    return across and one.top - _GAP < other.bottom and other.top - _GAP < one.bottom


def _shade(rng: Random, name: str) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-_SHADE, _SHADE))) for value in COLOURS[name])
    return red, green, blue


def _page(rng: Random) -> Colour:
    base = rng.randint(225, 255) if rng.random() < 0.7 else rng.randint(5, 45)
    red, green, blue = (min(255, max(0, base + rng.randint(-5, 5))) for _ in range(3))
    return red, green, blue


def _towards_grey(page: Colour) -> Colour:
    red, green, blue = ((value * 3 + 130 * 2) // 5 for value in page)
    return red, green, blue


def _lines(rng: Random, boxes: Sequence[Box]) -> list[Box]:
    lines = []
    for _ in range(rng.randint(0, 8)):
        left, top = rng.uniform(30, 600), rng.uniform(20, 960)
        line = Box(left, top, rng.uniform(left + 80, 970), top + rng.uniform(8, 16))
        lines.extend([] if any(_near(line, box) for box in boxes) else [line])
    return lines


def _draw_button(image: Image.Image, button: Button, size: Size) -> None:
    left, top, right, bottom = edges = button.box.pixels(size)
    ImageDraw.Draw(image).rounded_rectangle(edges, radius=(bottom - top) // 4, fill=button.shade)
    badge = _badge(button.number, round(size[1] * 0.076))
    place = (left + right + 1 - badge.width) // 2, (top + bottom + 1 - badge.height) // 2
    image.paste(badge, place, badge.getchannel("A"))


@lru_cache(maxsize=256)
def _badge(number: int, side: int) -> Image.Image:
    """A black digit on a white disc of so many pixels; RGBA."""
    large = Image.new("RGBA", (side * _SHARPER, side * _SHARPER), (255, 255, 255, 0))
    pen = ImageDraw.Draw(large)
    pen.ellipse((0, 0, large.width - 1, large.height - 1), fill="white")
    font: Any = ImageFont.load_default(side * _SHARPER)
    pen.text((large.width / 2, large.height / 2), str(number), fill="black", font=font, anchor="mm")
    return large.resize((side, side), Image.Resampling.BOX)
