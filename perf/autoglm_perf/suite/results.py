"""The report's JSON: every value of every repeat, with what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .suite import Result


def write_json(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    content = {"about": dict(about), "experiments": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def append_jsonl(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """The same, a line an experiment, so that runs can be followed over time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for result in results:
            stream.write(json.dumps({**asdict(result), "about": dict(about)}, ensure_ascii=False) + "\n")
