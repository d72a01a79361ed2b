"""Prints what was measured on a GPU, and appends it to a JSON-lines file with all that it depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autoglm_perf.suite.report import machine

from .bandwidth import Bandwidth
from .device import Gpu
from .samples import Figure

PACKAGES = ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "cuda-python")
_HEADINGS = ("batch", "median ms", "p10 ... p90", "floor ms", "x floor", "tokens/s", "off by", "samples")


def versions(names: Sequence[str] = (*PACKAGES, "torch", "transformers", "numpy")) -> dict[str, str]:
    """Of those that are installed."""
    found = {distribution.metadata["Name"]: distribution.version for distribution in metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def gpu_machine(gpu: Gpu, bandwidth: Bandwidth) -> dict[str, Any]:
    """`report.machine`, the GPU's own packages, and the card with the bandwidth that was measured in this run."""
    here = machine()
    here["packages"] |= versions(PACKAGES)
    here["gpu"] = {
        "name": gpu.name,
        "compute_capability": gpu.capability_text,
        "memory_bytes": gpu.memory_bytes,
        "driver_cuda": gpu.driver,
        "read_bytes_per_second": bandwidth.read,
        "copy_bytes_per_second": bandwidth.copy,
    }
    return here


def table(title: str, figures: Sequence[Figure]) -> Table:
    result = Table(title=title)
    result.add_column("system")
    result.add_column("step")
    for heading in _HEADINGS:
        result.add_column(heading, justify="right")
    for figure in figures:
        result.add_row(figure.system, figure.what, *_cells(figure))
    return result


def _cells(figure: Figure) -> list[str]:
    return [
        str(figure.batch),
        f"{figure.median_ms:.2f}",
        f"{figure.p10_ms:.2f} ... {figure.p90_ms:.2f}",
        "-" if figure.floor_ms is None else f"{figure.floor_ms:.2f}",
        "-" if figure.times_the_floor is None else f"{figure.times_the_floor:.2f}",
        f"{figure.tokens_per_second:,.0f}",
        "-" if figure.error is None else f"{figure.error:.1g}",
        str(figure.num_samples),
    ]


def show(console: Console, title: str, figures: Sequence[Figure]) -> None:
    console.print(table(title, figures))
    for line in comparisons(figures):
        console.print(line)


def comparisons(figures: Sequence[Figure]) -> list[str]:
    """Ours against transformers, for each step and batch that both have."""
    ours = {(figure.what, figure.batch): figure for figure in figures if figure.system != "transformers"}
    lines = []
    for other in figures:
        mine = ours.get((other.what, other.batch))
        if other.system == "transformers" and mine is not None:
            ratio = other.median_ms / mine.median_ms
            lines.append(f"{other.what}, batch {other.batch}: {ratio:.2f} times the speed of transformers generate")
    return lines


def append_jsonl(path: Path, here: dict[str, Any], settings: dict[str, Any], figures: Sequence[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": here, "settings": settings}
    with path.open("a", encoding="utf-8") as stream:
        for figure in figures:
            stream.write(json.dumps({**figure.as_json(), **context}) + "\n")
