"""Where a run's page, JSON and summary go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .registry import APART

WHOLE_SOAK_MINUTES = 20.0


@dataclass(frozen=True, slots=True)
class Outputs:
    """Names in the report's folder; `command` names the markers of the summary document, `title` heads its section."""

    page: str
    data: str
    summary: str
    command: str
    title: str
    repeats: int | None = None  # None: as many as were asked for


_APART: Mapping[str, tuple[str, int | None]] = {"vision": ("Models that see", None), "soak": ("The soak", 1)}
SUITE = Outputs("index.html", "results.json", "summary.md", "make bench", "The suite")


def outputs_of(names: Sequence[str]) -> Outputs:
    """An experiment that runs apart, alone, has files of its own: it must not replace those of the others."""
    if len(names) == 1 and names[0] in APART:
        (name,) = names
        title, repeats = _APART[name]
        return Outputs(f"{name}.html", f"{name}.json", f"{name}.md", f"make {name}", title, repeats)
    return SUITE


def is_whole(only: Sequence[str], *, quick: bool, soak_minutes: float) -> bool:
    """Whether the run may rewrite the summary document."""
    if quick:
        return False
    return not only or (outputs_of(only) != SUITE and soak_minutes >= WHOLE_SOAK_MINUTES)
