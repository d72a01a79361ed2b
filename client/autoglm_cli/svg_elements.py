"""The elements of SVG pictures, as text. Colours and layout are the callers'.

Attributes are given by keyword: `text_anchor="end"` is `text-anchor="end"`, and `class_` is `class`. Lengths are in the
picture's own units; a float is written with one digit behind the point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

NAMESPACE = "http://www.w3.org/2000/svg"
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels: `low` lies at `start`, `high`, and whatever is above it, at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = min((value - self.low) / (self.high - self.low), 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """`content` is SVG itself."""
    given = "".join(f' {_name(name)}="{_value(value)}"' for name, value in attributes.items())
    return f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    return element("text", escape(words, quote=False), x=x, y=y, **attributes)


def rectangle(x: float, y: float, width: float, height: float, *, title: str = "", **attributes: object) -> str:
    return element("rect", _title(title), x=x, y=y, width=width, height=height, **attributes)


def line(start: Point, end: Point, **attributes: object) -> str:
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], **attributes)


def polyline(points: Iterable[Point], *, title: str = "", **attributes: object) -> str:
    return element("polyline", _title(title), points=_points(points), **attributes)


def polygon(points: Iterable[Point], *, title: str = "", **attributes: object) -> str:
    return element("polygon", _title(title), points=_points(points), **attributes)


def picture(width: int, height: int, content: str, /, **attributes: object) -> str:
    """`content` is SVG itself. A picture that is a file by itself, not part of a page, has `xmlns=NAMESPACE`."""
    return element("svg", content, viewBox=f"0 0 {width} {height}", **attributes)


def _title(words: str) -> str:
    """Shown where the pointer rests on the element."""
    return element("title", escape(words, quote=False)) if words else ""


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _name(keyword: str) -> str:
    return keyword.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value), quote=True)
