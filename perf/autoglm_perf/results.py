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
