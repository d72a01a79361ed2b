"""Conversations: what every template relies on, and fields as templates read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.json_names import json_type
from autoglm_engine.tokenizer.rendering.thinking import (
    REASONING_FIELDS,
)
from autoglm_engine.tokenizer.tools.messages import check_tool_fields, has_calls

if TYPE_CHECKING:
    pass

MAX_ROLE_CHARACTERS = 64  # most characters of a role: it ends up in the prompt


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Checks what every template relies on: a list of objects with a role and a content, which may be null where an
    assistant calls functions. Raises InvalidRequest."""
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"messages is not JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a JSON list of at least one {role, content} object")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return messages


def _check_message(message: Any, name: str) -> None:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{name} is {json_type(message)}; it must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or not 1 <= len(role) <= MAX_ROLE_CHARACTERS:
        raise InvalidRequest(f"{name}.role must be a string of 1 to {MAX_ROLE_CHARACTERS} characters, such as user")
    check_tool_fields(message, name)
    for field in REASONING_FIELDS:
        if message.get(field) is not None and not isinstance(message[field], str):
            raise InvalidRequest(f"{name}.{field} is {json_type(message[field])}; it must be a string")
    content = message.get("content")
    if content is None and has_calls(message):
        return
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{name}.content[{index}]")
    elif not isinstance(content, str):
        raise InvalidRequest(f"{name}.content is {json_type(content)}; it must be a string or a list of parts")


def _check_part(part: Any, name: str) -> None:
    if isinstance(part, dict) and part.get("type") == "image":
        return  # `take_sizes` reads the rest
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequest(
            f'{name} must be {{"type": "text", "text": string}}, or {{"type": "image"}} for the next of the images'
        )


def without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Beside calls, content that is null or absent is "": templates add it to text, and test whether it is empty.
    Reasoning has each of the names that templates read it by, as transformers gives it."""
    given = {key: value for key, value in message.items() if value is not None}
    if (thought := next((given[name] for name in REASONING_FIELDS if name in given), None)) is not None:
        given = {"thinking": thought, **given, "reasoning_content": thought}
    return {"role": given["role"], "content": "", **given} if has_calls(given) else given
