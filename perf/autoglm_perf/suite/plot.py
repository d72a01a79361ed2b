"""Horizontal bars with their spread, and lines over time, as inline SVG. Colours are the page's: classes, never
literals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from autoglm_cli.svg_elements import Axis, element, line, picture, polyline, rectangle, text

from .spread import Spread, shown

_PANEL, _LEFT, _TOP, _FOOT = 130, 70, 28, 22
_WIDTH, _ROW, _BAR, _LABEL, _VALUE = 820, 34, 18, 300, 110


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    spread: Spread
    is_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: tuple[tuple[float, float], ...]  # (seconds, value)


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over time that share an axis."""

    title: str
    unit: str
    lines: tuple[Line, ...]


def lines(panel: Panel) -> str:
    """From zero to the largest value, over the whole time of all lines; each line's name stands in the title row."""
    points = [point for one in panel.lines for point in one.points]
    times = Axis(0, max((at for at, _ in points), default=0.0) or 1.0, _LEFT, _WIDTH)
    values = Axis(0, max((value for _, value in points), default=0.0) or 1.0, _TOP + _PANEL, _TOP)
    drawn, names = "", ""
    for number, one in enumerate(panel.lines):
        places = [(times.at(at), values.at(value)) for at, value in one.points]
        drawn += polyline(places, class_=f"l{number}", title=one.name)
        names += element("tspan", escape(one.name), dx=12, class_=f"n{number}")
    title = f"{panel.title}, {panel.unit}"
    return _picture(title, _TOP + _PANEL + _FOOT, _grid(times, values) + drawn, names)


def _picture(title: str, height: int, body: str, names: str = "") -> str:
    """`body` and `names`, which stand behind the title, are SVG."""
    heading = element("text", escape(title) + names, x=0, y=16, class_="title")
    return picture(_WIDTH, height, heading + body, role="img", aria_label=title)


def _grid(times: Axis, values: Axis) -> str:
    rows = "".join(
        line((_LEFT, values.at(value)), (_WIDTH, values.at(value)), class_="grid")
        + text(_LEFT - 8, values.at(value) + 4, shown(value), class_="label")
        for value in (0.0, values.high / 2, values.high)
    )
    foot = values.start + 18
    return rows + text(_LEFT, foot, "0") + text(_WIDTH, foot, f"{shown(times.high / 60)} min", class_="label")


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Bars from zero, the least and the greatest run as a line over the end of each."""
    top = max((row.spread.high for row in rows), default=0.0) or 1.0
    values = Axis(0, top, _LABEL, _WIDTH - _VALUE)
    body = "".join(_bar(row, 30 + _ROW * number, values) for number, row in enumerate(rows))
    return _picture(title, 30 + _ROW * len(rows), body)


def _bar(row: Bar, y: int, values: Axis) -> str:
    middle, spread = y + _BAR / 2, row.spread
    low, high, median = values.at(spread.low), values.at(spread.high), values.at(spread.median)
    whisker = f"M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8" if low < high else ""
    kind = "before" if row.is_baseline else "after"
    return (
        text(_LABEL - 10, middle + 4, _fitted(row.label), class_="label")
        + rectangle(_LABEL, y, max(1.0, median - _LABEL), _BAR, rx=3, class_=kind)
        + element("path", d=whisker, class_="spread")
        + text(max(high, median) + 8, middle + 4, shown(spread.median), class_="value")
    )


def _fitted(label: str, most: int = 40) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
