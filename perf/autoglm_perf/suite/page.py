"""The report as one HTML file that loads nothing: style, plots and tables are all inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .experiment import Metric
from .plot import Bar, bars, lines
from .rows import headings, how_to_read, rows
from .suite import Result

_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d232b;--soft:#5c6773;--line:#dfe3e8;--before:#a9b3bf;
--after:#2f7d6b;--bad:#b3372b;--skip:#8a6500}
@media(prefers-color-scheme:dark){:root{--bg:#14181d;--card:#1b2127;--ink:#e6eaee;--soft:#98a3af;--line:#303841;
--before:#5d6873;--after:#4fb59d;--bad:#ef8377;--skip:#d9b25a}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px}h1{font-size:26px;margin:0 0 6px}h2{font-size:19px;margin:0 0 4px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:20px 0}
p{margin:6px 0}.soft{color:var(--soft);font-size:13.5px}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:12px 0;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}th{color:var(--soft);
font-weight:600}
th:first-child,td:first-child{text-align:left}svg{width:100%;max-width:820px;display:block;margin:14px 0}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}svg .title{fill:var(--soft)}svg .label{text-anchor:end}
.before{fill:var(--before)}.after{fill:var(--after)}.spread{stroke:var(--ink);stroke-width:1.3;fill:none}
.failed{color:var(--bad)}.skipped{color:var(--skip)}.published{border-left:3px solid var(--line);padding-left:12px}
polyline{fill:none;stroke-width:1.6}.grid{stroke:var(--line)}.l0,.l4{stroke:var(--after)}.l1{stroke:#c77d2e}
.l2{stroke:#7a68c9}.l3{stroke:#3d8bc4}.l4{stroke-dasharray:5 3}
.n0,.n4{fill:var(--after)}.n1{fill:#c77d2e}.n2{fill:#7a68c9}.n3{fill:#3d8bc4}a{color:inherit}nav{font-size:14px;
color:var(--soft)}
"""


def render(results: Sequence[Result], about: Mapping[str, Any], notice: str = "") -> str:
    links = " · ".join(f'<a href="#{escape(r.description.name)}">{escape(r.description.title)}</a>' for r in results)
    head = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>AutoGLM-Triton: performance</title><meta '
        f'name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    )
    warning = f'<p class="failed">{escape(notice)}</p>' if notice else ""
    sections = "".join(_section(result) for result in results)
    return f"{head}<main><h1>Performance</h1>{warning}{_about(about)}<nav>{links}</nav>{sections}</main></html>\n"


def _about(about: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    where = f"{about['time']} · {about['cpu']}, {about['cores']} cores · Python {about['python']} · {about['artifact']}"
    how = how_to_read(about["repeats"])
    return "".join(f'<p class="soft">{escape(text)}</p>' for text in (where, packages, how))


def _section(result: Result) -> str:
    description = result.description
    published = "".join(_published(p.before, p.after) for p in description.published)
    head = (
        f'<section id="{escape(description.name)}"><h2>{escape(description.title)}</h2><p>'
        f"{escape(description.claim)}</p>{published}"
    )
    if result.found is None:
        return f'{head}<p class="{result.status}">{result.status.capitalize()}: {escape(result.reason)}</p></section>'
    settings = "; ".join(f"{name}: {value}" for name, value in result.found.settings.items())
    notes = [f"Samples: {result.found.samples}. Took {result.seconds:.0f} s.", settings, *result.found.remarks]
    foot = "".join(f'<p class="soft">{escape(note)}</p>' for note in notes)
    missed = "".join(f'<p class="failed">Not met: {escape(text)}</p>' for text in result.found.unmet)
    over_time = "".join(lines(panel) for panel in result.found.panels)
    return f"{head}{_plot(result, description.metrics[0])}{_table(result)}{missed}{over_time}{foot}</section>"


def _published(before: str, after: str) -> str:
    return f'<p class="published soft">Published: {escape(before)} &rarr; {escape(after)}</p>'


def _plot(result: Result, metric: Metric) -> str:
    assert result.found is not None
    found = result.found
    spreads = [(arm, arm.spread(metric)) for arm in found.arms]
    drawn = [Bar(arm.label, spread, found.baseline_of(arm) is None) for arm, spread in spreads if spread]
    better = "more is better" if metric.higher_is_better else "less is better"
    return bars(f"{metric.name}, {metric.unit} ({better})", drawn)


def _table(result: Result) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headings(result))
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows(result))
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
