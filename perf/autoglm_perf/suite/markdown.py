"""The summary in docs/performance.md: written between two markers, and nothing outside of them is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rows import headings, how_to_read, rows
from .suite import Result

_BENCH = "make bench"


def markers(command: str = _BENCH) -> tuple[str, str]:
    """The lines before and after what `command` writes."""
    return f"<!-- written by `{command}`: begin -->", f"<!-- written by `{command}`: end -->"


BEGIN, END = markers()


def write_summary(path: Path, summary: str, command: str = _BENCH) -> None:
    """Raises ValueError where the file has not exactly one pair of markers; a file that is missing is made."""
    begin, end = markers(command)
    text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    path.write_text(replaced(text, summary, command), encoding="utf-8")


def replaced(text: str, summary: str, command: str = _BENCH) -> str:
    begin, end = markers(command)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the document needs one line {begin!r} and after it one line {end!r}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{summary.strip()}\n{end}{rest.split(end)[1]}"


def render(results: Sequence[Result], about: Mapping[str, Any], title: str = "The suite") -> str:
    lines = [f"## {title}", "", _about(about), ""]
    for result in results:
        lines += _section(result)
    return "\n".join(lines)


def _about(about: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{about['time']}, {about['cpu']}, {about['cores']} cores, Python {about['python']}; "
        f"{about['artifact']}; {packages}. {how_to_read(about['repeats'])}"
    )


def _section(result: Result) -> list[str]:
    description = result.description
    lines = [f"### {escaped(description.title)}", "", escaped(description.claim), ""]
    if result.found is None:
        return [*lines, f"{result.status.capitalize()}: {escaped(result.reason)}", ""]
    table = [headings(result), ["---"] + ["---:"] * len(description.metrics), *rows(result)]
    lines += ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in table]
    lines += ["", *(f"Published: {escaped(p.before)} -> {escaped(p.after)}." for p in description.published)]
    settings = "; ".join(f"{name}: {value}" for name, value in result.found.settings.items())
    notes = [f"Samples: {result.found.samples}. Settings: {settings}.", *result.found.remarks]
    notes += [f"Not met: {text}" for text in result.found.unmet]
    return [*lines, *(escaped(note) for note in notes), ""]


def escaped(text: str) -> str:
    """On one line of a table or a paragraph, with nothing that Markdown would read as markup."""
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
