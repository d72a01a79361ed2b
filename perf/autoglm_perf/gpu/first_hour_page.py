"""The page of the first hour, from what its steps have recorded: nothing on it was typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .first_hour_steps import Step

Row = Mapping[str, Any]
_NOT_RUN = "not run"


def page(
    machine: Row, plan: Sequence[Step], outcomes: Sequence[Row], found: Sequence[Row], figures: Sequence[Row]
) -> str:
    """Markdown. `outcomes`: of the steps that ran; `found`: of the tests; `figures`: of the benchmark."""
    sections = [
        "# The first hour on a card",
        _machine(machine, figures),
        _steps(plan, outcomes),
        _capacities(found),
        _vision(found),
        _costs(figures),
        _whole(figures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _machine(machine: Row, figures: Sequence[Row]) -> str:
    lines = [
        f"{machine['name']}, compute capability {machine['capability']}, {machine['memory_bytes'] / 1e9:.0f} "
        f"GB, driver for CUDA {machine['driver']}, runtime {machine['runtime']}.",
        ", ".join(f"{name} {version}" for name, version in sorted(machine["packages"].items())) + ".",
    ]
    if figures:
        gpu = figures[-1]["machine"]["gpu"]
        read, copied = (gpu[f"{kind}_bytes_per_second"] / 1e9 for kind in ("read", "copy"))
        lines.append(
            f"Memory: {read:,.0f} GB/s read, {copied:,.0f} GB/s copied (read and written), measured in the same run."
        )
    return "\n".join(lines)


def _steps(plan: Sequence[Step], outcomes: Sequence[Row]) -> str:
    by_name = {outcome["name"]: outcome for outcome in outcomes}
    rows = [(step.name, step.what, str(step.minutes), *_outcome_cells(by_name.get(step.name))) for step in plan]
    table = _table(("step", "what", "planned min", "took min", "outcome"), rows)
    ended = next((s.ends for s in plan if by_name.get(s.name, {}).get("status") and s.ends), "")
    notes = [f"**Stopped:** {ended}."] if ended else []
    noticed = [f"- {outcome['name']}: `{line}`" for outcome in outcomes for line in outcome["noticed"]]
    failures = [
        f"{outcome['name']} ended with\n\n```\n" + "\n".join(outcome["tail"]) + "\n```"
        for outcome in outcomes
        if outcome["status"]
    ]
    parts = ["## Steps", table, *notes, "\n".join(["Noticed on the way:", "", *noticed]) if noticed else "", *failures]
    return "\n\n".join(part for part in parts if part)


def _outcome_cells(outcome: Row | None) -> tuple[str, str]:
    if outcome is None:
        return "", _NOT_RUN
    return f"{outcome['seconds'] / 60:.1f}", "passed" if outcome["status"] == 0 else f"failed ({outcome['status']})"


def _capacities(found: Sequence[Row]) -> str:
    """Parity by capacity, precision and form of attention."""
    rows = [_capacity_cells(row) for row in found if row["kind"] == "capacity"]
    if not rows:
        return ""
    told = (
        "Two layers of GLM-4's width beside poisoned caches, rows of several lengths in one step; relative "
        "L2 distance of the worst row from torch in float32."
    )
    headings = ("capacity", "precision", "attention", "decode", "prefill", "verdict")
    return "\n\n".join(["## Parity by capacity", told, _table(headings, rows)])


def _capacity_cells(row: Row) -> tuple[str, ...]:
    names = (f"{row['capacity']:,}", row["precision"], row["form"])
    if "failure" in row:
        return (*names, "-", "-", f"not built: {row['failure']}")
    worst = {kind: _worst(lengths) for kind, lengths in row["errors"].items()}
    is_right = all(error <= row["bound"] for _, error in worst.values())
    cells = (f"{error:.2g} (at {length} tokens)" for length, error in (worst["decode"], worst["prefill"]))
    return (*names, *cells, "right" if is_right else f"**wrong** (allowed {row['bound']:g})")


def _vision(found: Sequence[Row]) -> str:
    """The tower, by precision and image."""
    rows = [_vision_cells(row) for row in found if row["kind"] == "vision"]
    if not rows:
        return ""
    told = (
        "The tower of GLM-4.1V's widths and random weights; relative L2 distance of an image's features from "
        "transformers in float32. Times are of one image, from patches in host memory to features there."
    )
    headings = ("precision", "patches", "median ms", "first ms", "off by", "verdict", "built in s", "plan GB")
    return "\n\n".join(["## The vision tower", told, _table(headings, rows)])


def _vision_cells(row: Row) -> tuple[str, ...]:
    is_right = row["error"] <= row["bound"]
    return (
        row["precision"],
        f"{row['patches']:,}",
        f"{row['median_ms']:.1f}",
        f"{row['first_ms']:.1f}",
        f"{row['error']:.2g}",
        "right" if is_right else f"**wrong** (allowed {row['bound']:g})",
        f"{row['build_seconds']:.0f}",
        f"{row['plan_bytes'] / 1e9:.2f}",
    )


def _worst(lengths: Mapping[str, float]) -> tuple[str, float]:
    """NaN is the worst of all."""
    return max(lengths.items(), key=lambda item: float("inf") if item[1] != item[1] else item[1])


def _costs(figures: Sequence[Row]) -> str:
    """Decode steps of few layers, by capacity and by length."""
    chosen = [row for row in figures if not row["settings"]["baseline"] and row["what"] == "decode"]
    if not chosen:
        return ""
    columns = list(dict.fromkeys(_place(row) for row in chosen))
    by_cell = {(row["batch"], _place(row)): row for row in chosen}
    headings = ("batch", *(f"slots of {capacity:,}, {past:,} tokens" for capacity, past in columns))
    batches = dict.fromkeys(row["batch"] for row in chosen)
    rows = [(str(batch), *(_cost_cell(by_cell.get((batch, column))) for column in columns)) for batch in batches]
    layers = chosen[0]["settings"]["shape"]["num_layers"]
    told = (
        f"Decode steps of {layers} layers, median ms (times the floor of what they must read). From the "
        "first column to the second only the capacity grows, from the second to the third only the tokens in it."
    )
    return "\n\n".join(["## Cost by capacity and by length", told, _table(headings, rows)])


def _place(row: Row) -> tuple[int, int]:
    return row["settings"]["max_length"], row["settings"]["past"]


def _cost_cell(row: Row | None) -> str:
    return _NOT_RUN if row is None else f"{row['median_ms']:.2f} ({row['times_the_floor']:.2f})"


def _whole(figures: Sequence[Row]) -> str:
    """Ours against the floor, and transformers beside it."""
    chosen = [row for row in figures if row["settings"]["baseline"]]
    ours = [row for row in chosen if row["system"] != "transformers"]
    if not ours:
        return ""
    theirs = {(row["what"], row["batch"]): row for row in chosen if row["system"] == "transformers"}
    headings = (
        "step",
        "batch",
        "median ms",
        "p10 ... p90",
        "floor ms",
        "x floor",
        "tokens/s",
        "off by",
        "transformers ms",
        "x",
    )
    rows = [_whole_cells(row, theirs.get((row["what"], row["batch"]))) for row in ours]
    settings = ours[0]["settings"]
    told = (
        f"{settings['shape']['num_layers']} layers in {settings['precision']}, {settings['past']:,} tokens "
        f"of past, slots of {settings['max_length']:,}. Floor: what a step must read, at the bandwidth "
        "of this run. Off by: relative L2 distance of what was timed from the same tokens computed another way."
    )
    return "\n\n".join(["## The whole model", told, _table(headings, rows)])


def _whole_cells(row: Row, other: Row | None) -> tuple[str, ...]:
    floor = ("-", "-") if row["floor_ms"] is None else (f"{row['floor_ms']:.2f}", f"{row['times_the_floor']:.2f}")
    beside = (
        ("-", "-") if other is None else (f"{other['median_ms']:.2f}", f"{other['median_ms'] / row['median_ms']:.2f}")
    )
    return (
        row["what"],
        str(row["batch"]),
        f"{row['median_ms']:.2f}",
        f"{row['p10_ms']:.2f} ... {row['p90_ms']:.2f}",
        *floor,
        f"{row['tokens_per_second']:,.0f}",
        "-" if row["error"] is None else f"{row['error']:.1g}",
        *beside,
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
