"""Prints figures as a table, and appends them to a JSON-lines file with what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measures import RunFigures

PACKAGES = ("autoglm-triton", "nvidia-pytriton", "onnxruntime", "numpy", "tritonclient", "transformers", "torch")


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def show(console: Console, title: str, runs: Sequence[RunFigures]) -> None:
    """Two tables, so that both fit a terminal of 80 columns."""
    rates = ("requests", "errors", "requests/s", "tokens/s", "goodput/s")
    console.print(_table(title, rates, [(run, _rates(run)) for run in runs]))
    times = ("latency", "first token", "between tokens")
    console.print(_table("p50 / p95 / p99, ms", times, [(run, _times(run)) for run in runs]))


def append_jsonl(path: Path, settings: dict[str, Any], runs: Sequence[RunFigures]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(), "settings": settings}
    with path.open("a", encoding="utf-8") as stream:
        for run in runs:
            stream.write(json.dumps({**run.as_json(), **context}) + "\n")


def _table(title: str, headings: Sequence[str], rows: Sequence[tuple[RunFigures, list[str]]]) -> Table:
    table = Table(title=title)
    table.add_column("system")
    for heading in ("in flight", *headings):
        table.add_column(heading, justify="right")
    for run, cells in rows:
        table.add_row(run.system, str(run.concurrency), *cells)
    return table


def _rates(run: RunFigures) -> list[str]:
    return [
        str(run.num_requests),
        str(run.num_errors),
        f"{run.requests_per_second:.2f}",
        f"{run.output_tokens_per_second:.0f}",
        f"{run.goodput_per_second:.2f}",
    ]


def _times(run: RunFigures) -> list[str]:
    groups = (run.latency_ms, run.time_to_first_token_ms, run.inter_token_latency_ms)
    return [" / ".join("-" if value != value else f"{value:.0f}" for value in (p.p50, p.p95, p.p99)) for p in groups]


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
