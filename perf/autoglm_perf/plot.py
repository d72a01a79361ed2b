"""Horizontal bars with their spread as inline SVG. Colours are the page's: classes, never literals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .spread import Spread, shown

_WIDTH, _ROW, _BAR, _LABEL, _VALUE = 820, 34, 18, 300, 110


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    spread: Spread
    is_baseline: bool = False


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
        f'<rect x="{_LABEL}" y="{y}" width="{max(1.0, x(spread.median) - _LABEL):.1f}" height="{_BAR}" rx="3" class="{kind}"/>'
        f'<path d="{whisker}" class="spread"/>'
        f'<text x="{max(high, x(spread.median)) + 8}" y="{middle + 4}" class="value">{shown(spread.median)}</text>'
    )


def _fitted(label: str, most: int = 40) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
