"""Tokenizers that do nothing but split by a pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def split_only(pattern: str, **parts: Any) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    none: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    return {"version": "1.0", **none, "added_tokens": [], "pre_tokenizer": split, "model": model, **parts}


def write_split_only(path: Path, pattern: str) -> Path:
    path.write_text(json.dumps(split_only(pattern)), encoding="utf-8")
    return path
