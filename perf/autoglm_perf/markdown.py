"""The summary in docs/performance.md: written between two markers, and nothing outside of them is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rows import headings, rows
from .suite import Result

BEGIN = "<!-- written by `make bench`: begin -->"
END = "<!-- written by `make bench`: end -->"


def write_summary(path: Path, summary: str) -> None:
    """Raises ValueError where the file has not exactly one pair of markers; a file that is missing is made."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    path.write_text(replaced(text, summary), encoding="utf-8")


def replaced(text: str, summary: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the document needs one line {BEGIN!r} and after it one line {END!r}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{summary.strip()}\n{END}{rest.split(END)[1]}"


def render(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    lines = ["## The suite", "", _about(about), ""]
    for result in results:
        lines += _section(result)
    return "\n".join(lines)


def _about(about: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{about['time']}, {about['cpu']}, {about['cores']} cores, Python {about['python']}; {about['artifact']}; {packages}. "
        f"{about['repeats']} repeats: median (least ... greatest), and how many times better than the baseline of the same run."
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
    return [*lines, *(escaped(note) for note in notes), ""]


def escaped(text: str) -> str:
    """On one line of a table or a paragraph, with nothing that Markdown would read as markup."""
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
