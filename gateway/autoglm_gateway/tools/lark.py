"""Parts of rules in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def mark_rule(mark: str, tokens: Mapping[str, int]) -> str:
    """A mark that is a token must come as that token: the library takes no token of such a name for its text."""
    return f"<[{tokens[mark]}]>" if mark in tokens else literal(mark)


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> str:
    """Not `strict`: keywords that the library does not know are passed over; else it refuses them."""
    asked = {**schema, "x-guidance": {**_LAYOUT, "lenient": not strict}}
    return f"%json {json.dumps(asked, ensure_ascii=False)}"


def joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def alternatives(parts: Iterable[str]) -> str:
    return " | ".join(parts)
