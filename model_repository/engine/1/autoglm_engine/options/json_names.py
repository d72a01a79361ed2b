"""What a JSON value is called in a sentence."""

from __future__ import annotations

from typing import Any

_NAMES = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}


def json_type(value: Any) -> str:
    return _NAMES.get(type(value), "an object")
