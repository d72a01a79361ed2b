"""Draws a profile as one SVG picture that needs nothing else: no fonts, no scripts, no files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .figures import STAGES, StageFigures
from .report import Profile
from .summary import headline
from .timelines import Line, Panel, panels_of

WIDTH = 960
_LEFT, _RIGHT = 24, 24
_PLOT_LEFT = 76
_PANEL_HEIGHT, _PANEL_GAP = 92, 58
_STAGE_COLOURS = dict(
    zip(STAGES, ("#b45309", "#6d28d9", "#0f766e", "#0369a1", "#15803d", "#be185d", "#64748b"), strict=True)
)
_LINE_COLOURS = ("#0369a1", "#15803d", "#b45309", "#6d28d9", "#be185d", "#0f766e", "#94a3b8")
_INK, _FAINT, _RED = "#0f172a", "#64748b", "#dc2626"


def draw(profile: Profile) -> str:
    """The whole document."""
    parts = [*_head(profile)]
    top = 100 + 18 * len(_wrapped(profile.explanation)) + 20
    parts += _stages(profile.figures.stages, top)
    top += 52 + 26 * len(profile.figures.stages) + 44
    for panel in panels_of(profile.run):
        parts += _panel(panel, top, profile.run.seconds)
        top += _PANEL_HEIGHT + _PANEL_GAP
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
        f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" fill="{_INK}">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _head(profile: Profile) -> Iterator[str]:
    yield _text(_LEFT, 38, f"Bottleneck: {profile.verdict.bottleneck.value}", size=22, weight="bold")
    yield _text(_LEFT, 64, headline(profile), colour=_FAINT)
    for row, line in enumerate(_wrapped(profile.explanation)):
        yield _text(_LEFT, 94 + 18 * row, line)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 128)


def _stages(stages: Sequence[StageFigures], top: float) -> Iterator[str]:
    """One bar of all stages' shares, then a row a stage."""
    yield _text(_LEFT, top, "Where the time of the requests goes", weight="bold")
    width, left = WIDTH - _LEFT - _RIGHT, float(_LEFT)
    for stage in stages:
        yield _rectangle(
            left, top + 12, stage.share * width, 22, _STAGE_COLOURS[stage.name], f"{stage.name} {stage.share:.1%}"
        )
        left += stage.share * width
    for row, stage in enumerate(stages):
        yield from _stage_row(stage, top + 62 + 26 * row)


def _stage_row(stage: StageFigures, top: float) -> Iterator[str]:
    yield _rectangle(_LEFT, top - 10, 12, 12, _STAGE_COLOURS[stage.name])
    yield _text(_LEFT + 20, top, stage.name)
    yield _text(220, top, f"{stage.share:.1%}", anchor="end")
    yield _text(360, top, f"p50 {stage.p50:,.1f} ms", anchor="end")
    yield _text(500, top, f"p95 {stage.p95:,.1f} ms", anchor="end")


def _panel(panel: Panel, top: float, seconds: float) -> Iterator[str]:
    scale = _Scale(top, panel.top, seconds)
    yield _text(
        _LEFT, top - 14, panel.title if panel.unit in panel.title else f"{panel.title}, {panel.unit}", weight="bold"
    )
    yield from _axes(scale)
    drawn = list(_stack(panel.lines) if panel.stacked else [line.points for line in panel.lines])
    for number, (line, points) in reversed(list(enumerate(zip(panel.lines, drawn, strict=True)))):
        yield _curve(scale, points, _LINE_COLOURS[number % len(_LINE_COLOURS)], line.name, filled=panel.stacked)
    if panel.mark is not None and panel.mark <= panel.top:
        y = scale.y(panel.mark)
        yield (
            f'<line x1="{_PLOT_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_RED}" '
            'stroke-dasharray="5 4"/>'
        )
        yield _text(WIDTH - _RIGHT - 4, y - 4, f"mark {panel.mark:.3g}", size=11, colour=_RED, anchor="end")
    if len(panel.lines) > 1:
        yield from _legend(panel.lines, top - 14)


class _Scale:
    """From seconds and values to pixels."""

    def __init__(self, top: float, highest: float, seconds: float) -> None:
        self.top = top
        self.highest = highest
        self.seconds = seconds

    def x(self, at: float) -> float:
        return _PLOT_LEFT + min(at / self.seconds, 1.0) * (WIDTH - _RIGHT - _PLOT_LEFT)

    def y(self, value: float) -> float:
        return self.top + _PANEL_HEIGHT * (1 - min(value / self.highest, 1.0))


def _axes(scale: _Scale) -> Iterator[str]:
    for value in (0.0, scale.highest / 2, scale.highest):
        y = scale.y(value)
        yield f'<line x1="{_PLOT_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>'
        yield _text(_PLOT_LEFT - 8, y + 4, f"{value:.3g}", size=11, colour=_FAINT, anchor="end")
    for part in range(5):
        at = scale.seconds * part / 4
        anchor = "end" if part == 4 else "middle"
        yield _text(scale.x(at), scale.top + _PANEL_HEIGHT + 15, f"{at:.1f} s", size=11, colour=_FAINT, anchor=anchor)


def _stack(lines: Sequence[Line]) -> Iterator[list[tuple[float, float]]]:
    """Each line's upper edge, over the sum of those before it."""
    floor: dict[float, float] = {}
    for line in lines:
        floor = {at: floor.get(at, 0.0) + value for at, value in line.points}
        yield list(floor.items())


def _curve(scale: _Scale, points: Sequence[tuple[float, float]], colour: str, name: str, *, filled: bool) -> str:
    if not points:
        return ""
    path = " ".join(f"{scale.x(at):.1f},{scale.y(value):.1f}" for at, value in points)
    title = f"<title>{escape(name)}</title>"
    if not filled:
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8">{title}</polyline>'
    base = scale.y(0)
    first, last = scale.x(points[0][0]), scale.x(points[-1][0])
    return f'<polygon points="{first:.1f},{base:.1f} {path} {last:.1f},{base:.1f}" fill="{colour}">{title}</polygon>'


def _legend(lines: Sequence[Line], top: float) -> Iterator[str]:
    left = 190.0
    for number, line in enumerate(lines):
        yield _rectangle(left, top - 10, 11, 11, _LINE_COLOURS[number % len(_LINE_COLOURS)])
        yield _text(left + 16, top, line.name, size=12)
        left += 34 + 7.2 * len(line.name)


def _rectangle(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}"'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else f"{shape}/>"


def _text(
    x: float, y: float, text: str, *, size: int = 13, colour: str = _INK, weight: str = "normal", anchor: str = "start"
) -> str:
    halo = ' stroke="#ffffff" stroke-width="3" paint-order="stroke"' if colour == _RED else ""
    style = f'font-size="{size}"{halo} fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
