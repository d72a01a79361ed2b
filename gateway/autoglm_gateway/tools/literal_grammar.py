"""Values as programs write them (`literals`), held to their schema as far as its types, properties, items and values
go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm_gateway.errors import ApiError

from .call_form import Tags
from .lark import alternatives, bounded, escaped, joined, json_rule, literal, marked
from .schema_types import types_of

_ANY, _INNER, _STRING, _QUOTED = "any_value", "inner_value", "any_string", "inner_string"
_KNOWN = {
    "type", "properties", "required", "items", "enum", "const", "anyOf", "oneOf", "$ref", "$defs", "definitions",
    "additionalProperties", "title", "description", "default", "examples",
}  # fmt: skip
_NUMBERS = ("integer", "number")
_MAX_DEPTH = 20


def literal_rules(tags: Tags, tokens: Mapping[str, int]) -> list[str]:
    """Of values of any type; what is inside of others is written otherwise where strings are raw."""
    words = [json.dumps(word) for word in ("true", "false", "null", "True", "False", "None")]
    key = _QUOTED if len(tags.quote) < 2 else "/[^\\s:,{}\\[\\]]+/"
    comma, colon = _separators(tags)
    others = f"any_number | any_object | any_array | {' | '.join(words)}"
    return [
        *_string_rules(tags, tokens),
        f"{_ANY}: {_STRING} | {others}",
        f"{_INNER}: {_QUOTED} | {others}",
        "any_number: /-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?/",
        f'any_object: "{{" (any_pair ({comma} any_pair)*)? "}}"',
        f"any_pair: {key} {colon} {_INNER}",
        f'any_array: "[" ({_INNER} ({comma} {_INNER})*)? "]"',
    ]


def _string_rules(tags: Tags, tokens: Mapping[str, int]) -> list[str]:
    quote = tags.quote or "'"
    with_escapes = "/'(?s:[^'\\\\]|\\\\.)*'/ | /\"(?s:[^\"\\\\]|\\\\.)*\"/"
    if tags.is_raw:
        quote = escaped(quote)
        return [f"{_STRING}: /{quote}(?s:[^{quote}]|{quote}[^,)}}\\]\\s])*{quote}/", f"{_QUOTED}: {with_escapes}"]
    if len(quote) == 1:
        return [f"{_STRING}: {with_escapes}", f"{_QUOTED}: {_STRING}"]
    shared = f"{_QUOTED}: {_STRING}"
    if (token := tokens.get(quote)) is not None:
        return [f"{_STRING}: <[{token}]> QUOTED? <[{token}]>", "QUOTED: /(?s:.+)/", shared]
    return [f"{_STRING}: {literal(quote)} quoted", f"quoted[suffix={literal(quote)}]: /(?s:.*)/", shared]


def literal_rule(
    schema: Mapping[str, Any], tags: Tags, tokens: Mapping[str, int], *, strict: bool, depth: int = 0
) -> str:
    """Raises ApiError for a schema that is `strict` and has more in it than can be held to."""
    if strict and (unknown := sorted(set(schema) - _KNOWN)):
        sentence = f"a strict schema has {unknown[0]!r}, which this model's form of arguments cannot be held to"
        raise ApiError(400, sentence, param="tools", code="invalid_value")
    if depth > _MAX_DEPTH:
        return _INNER
    return bounded([_Values(schema, tags, tokens, strict, depth).rule()])[0]


class _Values:
    def __init__(
        self, schema: Mapping[str, Any], tags: Tags, tokens: Mapping[str, int], strict: bool, depth: int
    ) -> None:
        self._schema, self._tags, self._tokens, self._strict, self._depth = schema, tags, tokens, strict, depth
        self._shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def rule(self) -> str:
        schema = self._schema
        if isinstance(reference := schema.get("$ref"), str):
            found: Any = schema
            for part in reference.removeprefix("#/").split("/"):
                found = found.get(part, {}) if isinstance(found, Mapping) else {}
            return self._inner(found)
        for name in ("anyOf", "oneOf"):
            if isinstance(choices := schema.get(name), list) and choices:
                return f"({alternatives(bounded(self._inner(choice) for choice in choices))})"
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            return f"({alternatives(self._written(value) for value in values)})"
        kinds = types_of(schema)
        if len(kinds) > 3:
            return _INNER if self._depth else _ANY
        parts = [self._of_type(kind) for kind in kinds]
        return parts[0] if len(parts) == 1 else f"({alternatives(parts)})"

    def _inner(self, schema: Any) -> str:
        given = {**self._shared, **schema} if isinstance(schema, Mapping) else {}
        return literal_rule(given, self._tags, self._tokens, strict=self._strict, depth=self._depth + 1)

    def _of_type(self, kind: str) -> str:
        if kind == "string":
            return _QUOTED if self._depth else _STRING
        if kind in ("boolean", "null"):
            words = [True, False] if kind == "boolean" else [None]
            return f"({alternatives(self._written(word) for word in words)})"
        if kind in _NUMBERS:
            return json_rule({"type": kind}, strict=False)
        if kind == "object":
            return self._object()
        comma, _ = _separators(self._tags)
        items = self._inner(self._schema.get("items"))
        return joined('"["', f"({joined(items, f'({joined(comma, items)})*')})?", '"]"')

    def _object(self) -> str:
        properties = self._schema.get("properties")
        if "object" not in self._tags.python and len(self._tags.quote) == 1:
            return json_rule({**self._schema, "type": "object"}, strict=self._strict)
        if not isinstance(properties, Mapping) or not properties:
            return "any_object"
        comma, colon = _separators(self._tags)
        required = self._schema.get("required")
        named = {key for key in required if isinstance(key, str)} if isinstance(required, list) else set(properties)
        needed = [key for key in properties if key in named] or list(properties)
        pairs = bounded(joined(self._key(key), colon, self._inner(properties[key])) for key in self._order(needed))
        return joined('"{"', f" {comma} ".join(pairs), '"}"')

    def _order(self, keys: Sequence[str]) -> list[str]:
        return sorted(keys) if len(self._tags.quote) > 1 else list(keys)

    def _key(self, key: str) -> str:
        return literal(key) if len(self._tags.quote) > 1 else literal(repr(key))

    def _written(self, value: Any) -> str:
        return marked(_spelled(value, self._tags), self._tokens)


def _separators(tags: Tags) -> tuple[str, str]:
    return ('","', '":"') if len(tags.quote) > 1 else ('", "', '": "')


def _spelled(value: Any, tags: Tags) -> str:
    """As the form writes it."""
    comma, colon = (",", ":") if len(tags.quote) > 1 else (", ", ": ")
    match value:
        case str():
            return f"{tags.quote}{value}{tags.quote}" if len(tags.quote) > 1 else repr(value)
        case bool():
            return str(value) if "boolean" in tags.python else json.dumps(value)
        case None:
            return "None" if "null" in tags.python else "null"
        case list():
            return f"[{comma.join(_spelled(item, tags) for item in value)}]"
        case dict():
            pairs = (f"{key if len(tags.quote) > 1 else repr(key)}{colon}{_spelled(value[key], tags)}" for key in value)
            return f"{{{comma.join(pairs)}}}"
    return json.dumps(value)
