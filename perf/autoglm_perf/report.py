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
    table = Table(title=title)
    for heading in ("system", "in flight", "requests", "errors", "requests/s", "tokens/s", "goodput/s"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for heading in ("latency", "first token", "between tokens"):
        table.add_column(f"{heading} p50/p95/p99 ms", justify="right")
    for run in runs:
        table.add_row(*_cells(run))
    console.print(table)


def append_jsonl(path: Path, settings: dict[str, Any], runs: Sequence[RunFigures]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    context = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(), "settings": settings}
    with path.open("a", encoding="utf-8") as stream:
        for run in runs:
            stream.write(json.dumps({**run.as_json(), **context}) + "\n")


def _cells(run: RunFigures) -> list[str]:
    percentiles = (run.latency_ms, run.time_to_first_token_ms, run.inter_token_latency_ms)
    return [
        run.system,
        str(run.concurrency),
        str(run.num_requests),
        str(run.num_errors),
        f"{run.requests_per_second:.2f}",
        f"{run.output_tokens_per_second:.0f}",
        f"{run.goodput_per_second:.2f}",
        *("/".join("-" if v != v else f"{v:.0f}" for v in (p.p50, p.p95, p.p99)) for p in percentiles),
    ]


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
