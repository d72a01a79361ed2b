"""The rules of one call in the form of GLM-4.5 (`glm_xml`): its arguments are tags, and each has a rule of its own.

Of strings, only `enum` and `const` are held to: they are written as they are, up to their end tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .glm_xml import KEY, KEY_END, VALUE, VALUE_END
from .hermes import END
from .lark import alternatives, joined, json_rule, literal, mark_rule

_SHARED = ("$defs", "definitions")  # what references in a property's schema lead to
_TEXT = "text"


def body(name: str, schema: Mapping[str, Any], marks: Mapping[str, int], *, strict: bool) -> str:
    """After the mark of a call. Properties come in the order of the schema; others do not."""
    shared = {key: schema[key] for key in _SHARED if key in schema}
    properties, required = schema.get("properties"), schema.get("required")
    parts = [literal(f"{name}\n")]
    for key, described in (properties if isinstance(properties, Mapping) else {}).items():
        full = {**shared, **described} if isinstance(described, Mapping) else shared
        argument = joined(*_tags(key, marks), _value(full, marks, strict=strict), literal("\n"))
        is_required = isinstance(required, list) and key in required
        parts.append(argument if is_required else f"({argument})?")
    return joined(*parts, mark_rule(END, marks))


def text_rules(marks: Mapping[str, int]) -> list[str]:
    """Of a string with its end tag."""
    if VALUE_END in marks:
        return [f"{_TEXT}: TEXT? {mark_rule(VALUE_END, marks)}", "TEXT: /(?s:.+)/"]
    return [f"{_TEXT}[suffix={literal(VALUE_END)}]: /(?s:.*)/"]


def _tags(key: str, marks: Mapping[str, int]) -> tuple[str, ...]:
    begin, end, value = (mark_rule(mark, marks) for mark in (KEY, KEY_END, VALUE))
    return begin, literal(key), end, literal("\n"), value


def _value(schema: Mapping[str, Any], marks: Mapping[str, int], *, strict: bool) -> str:
    end = mark_rule(VALUE_END, marks)
    if schema.get("type") != "string":
        return joined(json_rule(schema, strict=strict), end)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not values:
        return _TEXT
    return joined(f"({alternatives(literal(str(value)) for value in values)})", end)
