"""Parts of rules in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from autoglm_gateway.errors import ApiError

from .call_form import ID, INDEX

MAX_GRAMMAR_BYTES = 65_536  # as the engine has it

_WORDS = ("title", "description")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples")
_PLACES = {ID: "/[a-zA-Z0-9_-]{1,64}/", INDEX: "/[0-9]{1,4}/"}
_SPACING = (", ", ": ")  # of `json.dumps`


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """In a regular expression, also in one of its classes."""
    return "".join(f"\\{character}" if character in r"[](){}/|.*+?^$\\" else character for character in text)


def marked(text: str, tokens: Mapping[str, int]) -> str:
    """A text with its places. A part that is a token must come as that token: the library takes no token of such a
    name for its text."""
    names = sorted(tokens, key=len, reverse=True)
    cut = re.split("(" + "|".join(map(re.escape, [*_PLACES, *names])) + ")", text)
    return joined(*(_part(part, tokens) for part in cut if part))


def _part(part: str, tokens: Mapping[str, int]) -> str:
    return f"<[{tokens[part]}]>" if part in tokens else _PLACES.get(part) or literal(part)


def json_rule(schema: Mapping[str, Any], *, strict: bool, spacing: tuple[str, str] | None = _SPACING) -> str:
    """Not `strict`: keywords that the library does not know are passed over; else it refuses them. `spacing`: after
    commas and colons; None for any."""
    layout: dict[str, Any] = {"whitespace_flexible": spacing is None}
    if spacing is not None:
        layout |= {"item_separator": spacing[0], "key_separator": spacing[1]}
    asked = {**_without_words(schema), "x-guidance": {**layout, "lenient": not strict}}
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


def bounded(parts: Iterable[str]) -> list[str]:
    """Raises ApiError as soon as they are more than a grammar may have: references make schemas of few bytes as long as
    they like."""
    kept, size = list[str](), 0
    for part in parts:
        kept.append(part)
        size += len(part.encode())
        if size > MAX_GRAMMAR_BYTES:
            sentence = (
                f"what the tools hold an answer to takes more than {MAX_GRAMMAR_BYTES:,} bytes, which is the most"
            )
            raise ApiError(400, sentence, param="tools", code="invalid_value")
    return kept


def joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def alternatives(parts: Iterable[str]) -> str:
    return " | ".join(parts)
