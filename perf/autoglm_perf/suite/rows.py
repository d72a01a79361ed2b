"""A result as the rows of a table, for the page and for Markdown alike."""

from __future__ import annotations

from .experiment import Arm, Found, Metric
from .spread import improvement, shown
from .suite import Result


def how_to_read(repeats: int) -> str:
    """What a cell says where each side ran so many times."""
    if repeats == 1:
        return "One run."
    return (
        f"{repeats} repeats: median (least ... greatest), and how many times better than the baseline of the same run."
    )


def headings(result: Result) -> list[str]:
    return [
        "",
        *(f"{metric.name}, {metric.unit}" if metric.unit else metric.name for metric in result.description.metrics),
    ]


def rows(result: Result) -> list[list[str]]:
    if result.found is None:
        return []
    return [[arm.label, *(cell(result.found, arm, m) for m in result.description.metrics)] for arm in result.found.arms]


def cell(found: Found, arm: Arm, metric: Metric) -> str:
    """`533 (458 ... 536), 31x`: median, least and greatest, and how many times better than its baseline."""
    spread = arm.spread(metric)
    if spread is None:
        return "-"
    middle, low, high = (shown(value, metric.decimals) for value in (spread.median, spread.low, spread.high))
    runs = "" if spread.low == spread.high else f" ({low} ... {high})"
    ratio = gain(found, arm, metric)
    return f"{middle}{runs}" + ("" if ratio is None else f", {shown(ratio)}x")


def gain(found: Found, arm: Arm, metric: Metric) -> float | None:
    other = found.baseline_of(arm)
    before, after = (other.spread(metric) if other else None), arm.spread(metric)
    if before is None or after is None:
        return None
    return improvement(before.median, after.median, higher_is_better=metric.higher_is_better)
