"""Tools for a model whose chat template has no place for them: told in the system message, called and answered in text.

The form of calls and answers is the one that Hermes and Qwen models use: JSON between <tool_call> and </tool_call>, and
what came of it between <tool_response> and </tool_response> in the user's next turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .definitions import Tool
from .messages import has_calls

_INTRODUCTION = "You can call functions. Each line between <tools> and </tools> describes one:"
_RULES = (
    "To call a function, write its name and its arguments as one JSON object between <tool_call> and </tool_call>, "
    "a block of its own for each call:"
)
_EXAMPLE = '{"name": <the function\'s name>, "arguments": <an object of its arguments>}'

Message = dict[str, Any]


def needs_plain_text(messages: Sequence[Message], tools: Sequence[Tool] | None) -> bool:
    return bool(tools) or any(has_calls(message) or message["role"] == "tool" for message in messages)


def in_plain_text(
    messages: Sequence[Message], tools: Sequence[Tool] | None, *, has_system: bool = True
) -> list[Message]:
    """The same conversation without calls, and without turns of tools: their answers are the user's. Not `has_system`:
    the template takes no system message, so the first turn has what is said of tools."""
    turns: list[Message] = []
    before = ""
    for message in messages:
        role = message["role"]
        block = _block("tool_response", _text(message))
        if role == before == "tool":  # answers to calls that were made at once are one turn
            turns[-1]["content"] += "\n" + block
        elif role == "tool":
            turns.append({"role": "user", "content": block})
        else:
            turns.append(_without_calls(message))
        before = role
    return _with_instructions(turns, _instructions(tools), has_system=has_system) if tools else turns


def _with_instructions(turns: list[Message], text: str, *, has_system: bool) -> list[Message]:
    first = turns[0]
    if first["role"] == "system":
        return [{**first, "content": "\n\n".join([_text(first), text])}, *turns[1:]]
    if has_system:
        return [{"role": "system", "content": text}, *turns]
    if isinstance(first.get("content"), list):  # with images among its parts
        return [{**first, "content": [{"type": "text", "text": text + "\n\n"}, *first["content"]]}, *turns[1:]]
    return [{**first, "content": "\n\n".join([text, _text(first)])}, *turns[1:]]


def _instructions(tools: Sequence[Tool]) -> str:
    lines = "\n".join(_json(tool) for tool in tools)
    return "\n".join([_INTRODUCTION, _block("tools", lines), "", _RULES, _block("tool_call", _EXAMPLE)])


def _without_calls(message: Message) -> Message:
    if not has_calls(message):
        return dict(message)
    blocks = [_block("tool_call", _json(_called(call["function"]))) for call in message["tool_calls"]]
    text = _text(message)
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([text, *blocks] if text else blocks)}


def _called(function: dict[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function["arguments"]}


def _text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _block(tag: str, body: str) -> str:
    return f"<{tag}>\n{body}\n</{tag}>"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
