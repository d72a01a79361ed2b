"""What validation found, as one sentence that names the field: `messages[2].content: ...`.

Values are shown shortened, and nothing of the error outlives the answer: it holds the whole body.
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import Repr
from typing import Any

from fastapi.exceptions import RequestValidationError

from .errors import ApiError

_MAX_SHOWN = 80  # characters of a value or a name
_MAX_OF_LONG = 24  # of a long text, which may be an image in base64
_LONG = 1000  # characters


def refusal(error: RequestValidationError) -> ApiError:
    """Of the innermost of its complaints: the others are of what the value might have been instead."""
    paths = [_path(found["loc"][1:], error.body) for found in error.errors()]
    deepest = max(range(len(paths)), key=lambda number: len(paths[number]))
    return _told(error.errors()[deepest], _name(paths[deepest]))


def _told(found: dict[str, Any], where: str) -> ApiError:
    param = where or None
    if found["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not supported by this server", param=param, code="unsupported_parameter")
    value = "" if found["type"] == "missing" else f", not {_shown(found['input'])}"
    return ApiError(400, f"{where or 'the body'}: {found['msg'].lower()}{value}", param=param, code="invalid_value")


def _path(loc: Sequence[str | int], body: Any) -> list[str | int]:
    """Without what pydantic adds: the names of a union's branches."""
    path: list[str | int] = []
    for number, part in enumerate(loc):
        if _holds(body, part):
            body = body[part]
        elif number + 1 < len(loc) or not isinstance(body, dict):
            continue
        path.append(part)
    return path


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _name(path: Sequence[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part:.{_MAX_SHOWN}}" for part in path]
    return "".join(parts).removeprefix(".")


class _Short(Repr):
    """Without the data of images."""

    def repr_str(self, x: str, level: int) -> str:
        if x[:5].lower() == "data:":
            return repr(f"{x[:_MAX_SHOWN].partition(',')[0][:_MAX_OF_LONG]},...")
        return repr(f"{x[:_MAX_OF_LONG]}...") if len(x) > _LONG else super().repr_str(x, level)


def _shown(value: Any) -> str:
    """Reads no more of a long value than it shows."""
    short = _Short()
    short.maxstring = short.maxother = short.maxlong = _MAX_SHOWN
    short.maxlevel = short.maxdict = short.maxlist = 3
    return f"{short.repr(value):.{2 * _MAX_SHOWN}}"
