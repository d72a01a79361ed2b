"""A profile as one HTML page: the picture, and the tables as text that can be copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .bottleneck import Check
from .report import Profile
from .summary import headline, latencies
from .svg import draw

_STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #0f172a; background: #f1f5f9; margin: 0; }
main { max-width: 960px; margin: 24px auto; background: #fff; padding-bottom: 24px; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; margin: 0 24px 24px; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #e2e8f0; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.full { color: #dc2626; font-weight: bold; }
"""


def page(profile: Profile) -> str:
    figures = _table(("milliseconds", "p50", "p95"), (_row(cells) for cells in latencies(profile)))
    checks = _table(("resource", "observed", "counts from", ""), (_check(check) for check in profile.verdict.checks))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(headline(profile))}</title>'
        f"<style>{_STYLE}</style></head>\n<body><main>\n{draw(profile)}{figures}{checks}</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><tr>{cells}</tr>\n" + "\n".join(rows) + "</table>\n"


def _row(cells: Sequence[str]) -> str:
    first, *numbers = map(escape, cells)
    return f"<tr><td>{first}</td>" + "".join(f'<td class="number">{number}</td>' for number in numbers) + "</tr>"


def _check(check: Check) -> str:
    cells = (check.resource.value, check.observed, check.mark)
    state = '<td class="full">at its mark</td>' if check.saturated else "<td></td>"
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + state + "</tr>"
