"""The rule of one call in the form of GLM-4.5 (`glm_xml`): its arguments are tags, and each has a rule of its own.

Of strings, only `enum` and `const` are held to: they are written as they are, up to their end tag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .glm_xml import BEGIN, END

_SHARED = ("$defs", "definitions")  # what references in a property's schema lead to


def xml_call(
    name: str,
    schema: Mapping[str, Any],
    json_rule: Callable[[Mapping[str, Any]], str],
    literal: Callable[[str], str],
) -> str:
    """Properties come in the order of the schema; others do not. `text` is the rule of a string with its end tag."""
    shared = {key: schema[key] for key in _SHARED if key in schema}
    required = schema.get("required", ())
    parts = [literal(f"{BEGIN}{name}\n")]
    for key, described in schema.get("properties", {}).items():
        head = literal(f"<arg_key>{key}</arg_key>\n<arg_value>")
        value = _value({**shared, **described} if isinstance(described, Mapping) else shared, json_rule, literal)
        argument = f'{head} {value} "\\n"'
        parts.append(argument if key in required else f"({argument})?")
    return " ".join([*parts, literal(END)])


def _value(
    schema: Mapping[str, Any], json_rule: Callable[[Mapping[str, Any]], str], literal: Callable[[str], str]
) -> str:
    if schema.get("type") != "string":
        return f'{json_rule(schema)} "</arg_value>"'
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return "(" + " | ".join(literal(f"{value}</arg_value>") for value in values) + ")"
    return "text"
