"""A profile in the terminal: figures, stages, timelines, verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from autoglm_cli.profile.bottleneck import Check, Resource, Verdict
from autoglm_cli.profile.driving import first_errors
from autoglm_cli.profile.figures import Series, StageFigures
from autoglm_cli.profile.report import Profile
from autoglm_cli.profile.summary import headline, latencies
from autoglm_cli.profile.timelines import Panel, panels_of

_COLOURS = {
    "queue": "yellow",
    "tokenize": "magenta",
    "embed": "cyan",
    "prefill": "blue",
    "decode": "green",
    "detokenize": "red",
    "network": "bright_black",
}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LABEL_WIDTH = 28  # of a timeline: its name and its largest value


def show(console: Console, profile: Profile) -> None:
    console.print(headline(profile), style="bold")
    console.print(_latency_table(profile))
    console.print(_stage_table(profile.figures.stages, console.width))
    console.print(_timelines(profile, console.width))
    console.print(_check_table(profile.verdict))
    console.print(Box(profile.explanation, title=f"bottleneck: {profile.verdict.bottleneck.value}", title_align="left"))
    for error, count in first_errors(profile.run.requests)[:3]:
        console.print(f"{count} failed: {error}", style="red", markup=False)


def bar(share: float, width: int) -> str:
    """`share` of `width` characters, in eighths."""
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def sparkline(points: Series, seconds: float, top: float, width: int) -> str:
    """A character a moment: the largest value in it, and where there is none the one before."""
    if not points:
        return ""
    heights: list[float | None] = [None] * width
    for at, value in points:
        cell = min(int(at / seconds * width), width - 1)
        heights[cell] = max(value, heights[cell] or 0.0)
    drawn, last = "", points[0][1]
    for height in heights:
        last = last if height is None else height
        level = min(round(last / top * 8), 8)
        drawn += _BLOCKS[max(level, 1 if last > 0 else 0)]
    return drawn


def _latency_table(profile: Profile) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("milliseconds", min_width=20)
    for name in ("p50", "p95"):
        table.add_column(name, justify="right")
    for row in latencies(profile):
        table.add_row(*row)
    return table


def _stage_table(stages: Sequence[StageFigures], width: int) -> RenderableType:
    table = Table(title="where the time goes", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("stage", min_width=10)
    for name in ("p50 ms", "p95 ms", "share"):
        table.add_column(name, justify="right", min_width=7)
    table.add_column("")
    for stage in stages:
        drawn = Text(bar(stage.share, max(width - 48, 10)), style=_COLOURS[stage.name])
        table.add_row(stage.name, f"{stage.p50:,.1f}", f"{stage.p95:,.1f}", f"{stage.share:.1%}", drawn)
    return Padding(table, (1, 0, 0, 0))


def _timelines(profile: Profile, width: int) -> RenderableType:
    rows: list[Text] = [Text(f"over {profile.run.seconds:.1f} s", style="bold")]
    for panel in panels_of(profile.run):
        rows += _panel_rows(panel, profile.run.seconds, max(width - _LABEL_WIDTH - 1, 10))
    return Padding(Group(*rows), (1, 0, 0, 0))


def _panel_rows(panel: Panel, seconds: float, width: int) -> list[Text]:
    """Lines share their panel's scale, so that they can be compared."""
    several = len(panel.lines) > 1
    rows = []
    for line in panel.lines:
        label = f"{panel.title} {line.name}" if several else panel.title
        largest = max((value for _, value in line.points), default=0.0)
        scale = f"{largest:.3g}/{panel.ceiling:.3g}" if panel.ceiling else f"{largest:.3g} {panel.unit}"
        name = label[: _LABEL_WIDTH - len(scale) - 1].ljust(_LABEL_WIDTH - len(scale))
        rows.append(Text(f"{name}{scale} {sparkline(line.points, seconds, panel.top, width)}", no_wrap=True))
    return rows


def _check_table(verdict: Verdict) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("resource", min_width=9)
    table.add_column("observed", ratio=3)
    table.add_column("counts from", ratio=2)
    for check in verdict.checks:
        name = Text(check.resource.value, style=_style(check, verdict.bottleneck))
        table.add_row(name, Text(check.observed), Text(check.mark, style="dim"))
    return Padding(table, (1, 0, 0, 0))


def _style(check: Check, bottleneck: Resource) -> str:
    if check.resource is bottleneck:
        return "bold red"
    return "yellow" if check.saturated else ""
