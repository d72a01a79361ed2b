"""Draws a profile as one SVG picture that needs nothing else: no fonts, no scripts, no files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from autoglm_cli.svg_elements import NAMESPACE, Axis, Point, element, line, picture, polygon, polyline, rectangle, text

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
    paper = element("rect", width="100%", height="100%", fill="#ffffff")
    body = "\n".join(["", paper, *parts, ""])
    style = {"font_family": "Helvetica, Arial, DejaVu Sans, sans-serif", "font_size": 13, "fill": _INK}
    return picture(WIDTH, top, body, xmlns=NAMESPACE, width=WIDTH, height=top, **style) + "\n"


def _head(profile: Profile) -> Iterator[str]:
    yield _text(_LEFT, 38, f"Bottleneck: {profile.verdict.bottleneck.value}", size=22, weight="bold")
    yield _text(_LEFT, 64, headline(profile), colour=_FAINT)
    for row, words in enumerate(_wrapped(profile.explanation)):
        yield _text(_LEFT, 94 + 18 * row, words)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 128)


def _stages(stages: Sequence[StageFigures], top: float) -> Iterator[str]:
    """One bar of all stages' shares, then a row a stage."""
    yield _text(_LEFT, top, "Where the time of the requests goes", weight="bold")
    width, left = WIDTH - _LEFT - _RIGHT, float(_LEFT)
    for stage in stages:
        share, colour = max(stage.share, 0.0) * width, _STAGE_COLOURS[stage.name]
        yield rectangle(left, top + 12, share, 22.0, fill=colour, title=f"{stage.name} {stage.share:.1%}")
        left += stage.share * width
    for row, stage in enumerate(stages):
        yield from _stage_row(stage, top + 62 + 26 * row)


def _stage_row(stage: StageFigures, top: float) -> Iterator[str]:
    yield rectangle(_LEFT, top - 10, 12, 12, fill=_STAGE_COLOURS[stage.name])
    yield _text(_LEFT + 20, top, stage.name)
    yield _text(220, top, f"{stage.share:.1%}", anchor="end")
    yield _text(360, top, f"p50 {stage.p50:,.1f} ms", anchor="end")
    yield _text(500, top, f"p95 {stage.p95:,.1f} ms", anchor="end")


def _panel(panel: Panel, top: float, seconds: float) -> Iterator[str]:
    times = Axis(0, seconds, _PLOT_LEFT, WIDTH - _RIGHT)
    values = Axis(0, panel.top, top + _PANEL_HEIGHT, top)
    title = panel.title if panel.unit in panel.title else f"{panel.title}, {panel.unit}"
    yield _text(_LEFT, top - 14, title, weight="bold")
    yield from _axes(times, values)
    drawn = list(_stack(panel.lines) if panel.stacked else [one.points for one in panel.lines])
    for number, (one, points) in reversed(list(enumerate(zip(panel.lines, drawn, strict=True)))):
        places = [(times.at(at), values.at(value)) for at, value in points]
        yield _curve(places, values.start, _line_colour(number), one.name, filled=panel.stacked)
    if panel.mark is not None and panel.mark <= panel.top:
        yield from _mark(panel.mark, values.at(panel.mark))
    if len(panel.lines) > 1:
        yield from _legend(panel.lines, top - 14)


def _mark(value: float, y: float) -> Iterator[str]:
    yield line((_PLOT_LEFT, y), (WIDTH - _RIGHT, y), stroke=_RED, stroke_dasharray="5 4")
    yield _text(WIDTH - _RIGHT - 4, y - 4, f"mark {value:.3g}", size=11, colour=_RED, anchor="end")


def _axes(times: Axis, values: Axis) -> Iterator[str]:
    for value in (0.0, values.high / 2, values.high):
        y = values.at(value)
        yield line((_PLOT_LEFT, y), (WIDTH - _RIGHT, y), stroke="#e2e8f0")
        yield _text(_PLOT_LEFT - 8, y + 4, f"{value:.3g}", size=11, colour=_FAINT, anchor="end")
    for part in range(5):
        at = times.high * part / 4
        anchor = "end" if part == 4 else "middle"
        yield _text(times.at(at), values.end + _PANEL_HEIGHT + 15, f"{at:.1f} s", size=11, colour=_FAINT, anchor=anchor)


def _stack(lines: Sequence[Line]) -> Iterator[list[tuple[float, float]]]:
    """Each line's upper edge, over the sum of those before it."""
    floor: dict[float, float] = {}
    for one in lines:
        floor = {at: floor.get(at, 0.0) + value for at, value in one.points}
        yield list(floor.items())


def _curve(points: Sequence[Point], base: float, colour: str, name: str, *, filled: bool) -> str:
    if not points:
        return ""
    if not filled:
        return polyline(points, fill="none", stroke=colour, stroke_width="1.8", title=name)
    return polygon([(points[0][0], base), *points, (points[-1][0], base)], fill=colour, title=name)


def _legend(lines: Sequence[Line], top: float) -> Iterator[str]:
    left = 190.0
    for number, one in enumerate(lines):
        yield rectangle(left, top - 10, 11, 11, fill=_line_colour(number))
        yield _text(left + 16, top, one.name, size=12)
        left += 34 + 7.2 * len(one.name)


def _line_colour(number: int) -> str:
    return _LINE_COLOURS[number % len(_LINE_COLOURS)]


def _text(
    x: float, y: float, words: str, *, size: int = 13, colour: str = _INK, weight: str = "normal", anchor: str = "start"
) -> str:
    halo = {"stroke": "#ffffff", "stroke_width": "3", "paint_order": "stroke"} if colour == _RED else {}
    return text(x, y, words, font_size=size, **halo, fill=colour, font_weight=weight, text_anchor=anchor)
