"""Conversations with tools for the templates of GLM-4, which know no `tool_calls` and no role `tool`.

A call is a turn of the assistant whose `metadata` is the function's name and whose content is its arguments; what came
of it is a turn of the role `observation`. (Source: the chat templates of glm-4-9b-chat and GLM-4-0414, as published.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .definitions import Tool
from .messages import has_calls

Message = dict[str, Any]


def in_metadata(messages: Sequence[Message]) -> list[Message]:
    """The same conversation. What was said before calls is a turn of its own."""
    return [turn for message in messages for turn in _turns(message)]


def with_tools_in_system_item(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    if messages[0]["role"] == "system":
        return [{**messages[0], "tools": list(tools)}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": list(tools)}, *messages]


def _turns(message: Message) -> list[Message]:
    if message["role"] == "tool":
        return [{"role": "observation", "content": message["content"]}]
    if not has_calls(message):
        return [message]
    said = [{"role": "assistant", "content": message["content"]}] if message.get("content") else []
    functions = [call["function"] for call in message["tool_calls"]]
    return said + [
        {"role": "assistant", "metadata": function["name"], "content": _json(function["arguments"])}
        for function in functions
    ]


def _json(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)
