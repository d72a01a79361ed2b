"""Horizontal bars with their spread, and lines over time, as inline SVG. Colours are the page's: classes, never
literals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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
    points = [point for line in panel.lines for point in line.points]
    seconds, top = max((at for at, _ in points), default=0.0) or 1.0, max((v for _, v in points), default=0.0) or 1.0
    height = _TOP + _PANEL + _FOOT
    drawn = "".join(_line(line, number, seconds, top) for number, line in enumerate(panel.lines))
    names = "".join(
        f'<tspan dx="12" class="n{number}">{escape(line.name)}</tspan>' for number, line in enumerate(panel.lines)
    )
    title = escape(f"{panel.title}, {panel.unit}", quote=True)
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">'
    return f'{head}<text x="0" y="16" class="title">{title}{names}</text>{_grid(seconds, top)}{drawn}</svg>'


def _grid(seconds: float, top: float) -> str:
    bottom = _TOP + _PANEL
    rows = "".join(
        f'<path d="M{_LEFT} {bottom - part * _PANEL}H{_WIDTH}" class="grid"/>'
        f'<text x="{_LEFT - 8}" y="{bottom - part * _PANEL + 4}" class="label">{shown(part * top)}</text>'
        for part in (0.0, 0.5, 1.0)
    )
    ends = (
        f'<text x="{_LEFT}" y="{bottom + 18}">0</text><text x="{_WIDTH}" y="{bottom + 18}" '
        f'class="label">{shown(seconds / 60)} min</text>'
    )
    return rows + ends


def _line(line: Line, number: int, seconds: float, top: float) -> str:
    path = " ".join(
        f"{_LEFT + at / seconds * (_WIDTH - _LEFT):.1f},{_TOP + _PANEL * (1 - value / top):.1f}"
        for at, value in line.points
    )
    return f'<polyline points="{path}" class="l{number}"><title>{escape(line.name)}</title></polyline>'


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Bars from zero, the least and the greatest run as a line over the end of each."""
    top = max((row.spread.high for row in rows), default=0.0) or 1.0
    height = 30 + _ROW * len(rows)
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    body = "".join(_bar(row, 30 + _ROW * number, top) for number, row in enumerate(rows))
    return f'{head}<text x="0" y="16" class="title">{escape(title)}</text>{body}</svg>'


def _bar(row: Bar, y: int, top: float) -> str:
    def x(value: float) -> float:
        return round(_LABEL + value / top * (_WIDTH - _LABEL - _VALUE), 1)

    middle, spread = y + _BAR / 2, row.spread
    kind = "before" if row.is_baseline else "after"
    low, high = x(spread.low), x(spread.high)
    whisker = f"M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8" if low < high else ""
    return (
        f'<text x="{_LABEL - 10}" y="{middle + 4}" class="label">{escape(_fitted(row.label))}</text>'
        f'<rect x="{_LABEL}" y="{y}" width="{max(1.0, x(spread.median) - _LABEL):.1f}" height="{_BAR}" '
        f'rx="3" class="{kind}"/><path d="{whisker}" class="spread"/>'
        f'<text x="{max(high, x(spread.median)) + 8}" y="{middle + 4}" class="value">{shown(spread.median)}</text>'
    )


def _fitted(label: str, most: int = 40) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
