"""What types a JSON Schema allows, as far as it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .call_form import TYPES


def property_types(schema: Mapping[str, Any], key: str) -> tuple[str, ...]:
    properties = schema.get("properties")
    described = properties.get(key) if isinstance(properties, Mapping) else None
    return types_of(described) if isinstance(described, Mapping) else TYPES


def types_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """All that are not ruled out."""
    asked = schema.get("type")
    if isinstance(asked, str):
        return (asked,) if asked in TYPES else TYPES
    if isinstance(asked, list):
        return tuple(kind for kind in TYPES if kind in asked) or TYPES
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        found = {type_of(value) for value in values}
        return tuple(kind for kind in TYPES if kind in found)
    return TYPES


def type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
