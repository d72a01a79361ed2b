"""Files of a Hugging Face folder: what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoglm_export.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Of texts that are whole: half of a surrogate pair, which JSON can spell, is no character."""
    content = read_bytes(path)
    try:
        value = json.loads(content)
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    return read_json(path) if path.exists() else {}


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no whole checkpoint: it lacks {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from None
