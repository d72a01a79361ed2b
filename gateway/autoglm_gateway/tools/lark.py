"""Parts of rules in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_WORDS = ("title", "description")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples")
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def mark_rule(mark: str, tokens: Mapping[str, int]) -> str:
    """A mark that is a token must come as that token: the library takes no token of such a name for its text."""
    return f"<[{tokens[mark]}]>" if mark in tokens else literal(mark)


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """Not `strict`: keywords that the library does not know are passed over; else it refuses them."""
    asked = {**_without_words(schema), "x-guidance": {**_LAYOUT, "lenient": not strict}}
    return f"%json {json.dumps(asked, ensure_ascii=False)}"


def _without_words(schema: Any) -> Any:
    """What describes a schema to people holds nobody to anything, and a grammar has a bounded size. Properties may have
    such names; an enum's or a const's values stay as they are."""
    if isinstance(schema, list):
        return [_without_words(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _WORDS and isinstance(part, str):
            continue
        if name in _BY_NAME and isinstance(part, Mapping):
            kept[name] = {inner: _without_words(value) for inner, value in part.items()}
        else:
            kept[name] = part if name in _VALUES else _without_words(part)
    return kept


def joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def alternatives(parts: Iterable[str]) -> str:
    return " | ".join(parts)
