"""The functions that a model may call, as OpenAI's API describes them:

[{"type": "function", "function": {"name": ..., "description": ..., "parameters": <JSON Schema>, "strict": ...}}]
"""

from __future__ import annotations

import json
import re
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.json_names import json_type

Tool = dict[str, Any]

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FIELDS: dict[str, type] = {"name": str, "description": str, "parameters": dict, "strict": bool}


def parse_tools(text: str) -> list[Tool]:
    """Checks all that templates rely on; only the schemas in `parameters` are left to the model. Raises
    InvalidRequest."""
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"tools is not JSON: {error}") from None
    if not isinstance(tools, list) or not 1 <= len(tools) <= MAX_TOOLS:
        got = f"{len(tools)} of them" if isinstance(tools, list) else json_type(tools)
        raise InvalidRequest(f"tools must be a JSON list of 1 to {MAX_TOOLS} functions, got {got}")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = _checked_name(tool, f"tools[{index}]")
        if name in names:
            raise InvalidRequest(f"tools[{index}].function.name is {name!r}, which another tool has, too")
        names.add(name)
    return tools


def check_function_name(value: Any, place: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(f"{place} is {value!r:.80}; it must be 1 to 64 letters, digits, _ or -")
    return value


def _checked_name(tool: Any, place: str) -> str:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise InvalidRequest(f'{place} must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}')
    _refuse_others(tool, {"type", "function"}, place)
    function, where = tool["function"], f"{place}.function"
    _refuse_others(function, _FIELDS.keys(), where)
    name = check_function_name(function.get("name"), f"{where}.name")
    for field, kind in _FIELDS.items():
        if field in function and not isinstance(function[field], kind):
            raise InvalidRequest(f"{where}.{field} is {json_type(function[field])}, not {json_type(kind())}")
    return name


def _refuse_others(value: dict[str, Any], known: Any, place: str) -> None:
    if others := sorted(value.keys() - set(known)):
        raise InvalidRequest(
            f"{place} has the unknown field {others[0]!r:.80}; known ones are {', '.join(sorted(known))}"
        )
