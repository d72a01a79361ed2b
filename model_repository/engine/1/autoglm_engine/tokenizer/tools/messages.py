"""Turns of a conversation in which functions were called: what the assistant asked for, and what came of it."""

from __future__ import annotations

import json
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.json_names import json_type

from .definitions import check_function_name

MAX_CALLS = 128  # of one message
_MAX_ID_CHARACTERS = 256


def has_calls(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls"))


def check_tool_fields(message: dict[str, Any], place: str) -> None:
    """Of a message with a role. Arguments that came as text, as OpenAI's API has them, become the object that
    templates expect. Raises InvalidRequest."""
    for field in ("tool_call_id", "name"):
        if message.get(field) is not None:
            _check_text(message[field], f"{place}.{field}")
    calls = message.get("tool_calls")
    if calls is None:
        return
    if message["role"] != "assistant":
        raise InvalidRequest(f"{place}.tool_calls are of the role {message['role']!r}; only an assistant calls")
    if not isinstance(calls, list) or len(calls) > MAX_CALLS:
        raise InvalidRequest(f"{place}.tool_calls must be a list of at most {MAX_CALLS} calls")
    for index, call in enumerate(calls):
        _check_call(call, f"{place}.tool_calls[{index}]")


def with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    """For templates that take no object."""
    if not has_calls(message):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
    calls = [
        {**call, "function": {**call["function"], "arguments": text}}
        for call, text in zip(message["tool_calls"], texts, strict=True)
    ]
    return {**message, "tool_calls": calls}


def _check_call(call: Any, place: str) -> None:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise InvalidRequest(f'{place} must be {{"id": ..., "type": "function", "function": {{"name", "arguments"}}}}')
    if call.get("type", "function") != "function":
        raise InvalidRequest(f"{place}.type is {call['type']!r:.80}; it must be 'function'")
    if call.get("id") is not None:
        _check_text(call["id"], f"{place}.id")
    function = call["function"]
    check_function_name(function.get("name"), f"{place}.function.name")
    function["arguments"] = _arguments(function.get("arguments"), f"{place}.function.arguments")


def _arguments(value: Any, place: str) -> dict[str, Any]:
    read = value
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{place} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise InvalidRequest(f"{place} is {json_type(read)}; it must be an object, or one written as JSON")
    return read


def _check_text(value: Any, place: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_ID_CHARACTERS:
        raise InvalidRequest(f"{place} must be a string of 1 to {_MAX_ID_CHARACTERS} characters")
