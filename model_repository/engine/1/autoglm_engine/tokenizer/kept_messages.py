"""Whether each message of a conversation is in what a chat template makes of it.

A template passes over a role that it does not know, or over calls beside content, without a word, and a model then
answers a conversation that nobody had. A message whose text is not in the prompt as it is may still be there in another
form; so other words are put in its place: where the prompt stays the same, it is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .tool_messages import has_calls

Message = dict[str, Any]
Render = Callable[[list[Message]], str]

_PLAIN_ROLES = frozenset({"system", "user", "assistant"})
_CALLS = "calls"
_MAX_SHOWN = 40  # characters of a message


class KeptMessages:
    """Of one template. Calls and uncommon roles, whose text may be anywhere by chance, are tried once each."""

    def __init__(self) -> None:
        self._kept: set[str] = set(_PLAIN_ROLES)

    def check(self, messages: Sequence[Message], text: str, render: Render) -> None:
        """`text`: what `render` made of the messages. Raises InvalidRequest, which names a message that is lost."""
        suspects = [index for index, message in enumerate(messages) if self._is_suspect(message, text)]
        if not suspects:
            return
        try:
            marked = render(_marked(messages, suspects))
        except InvalidRequest:
            return  # it reads what it refuses
        for index in suspects:
            if _mark(index) not in marked and _is_lost(messages, index, text, render):
                raise InvalidRequest(_sentence(messages[index], index))
            self._kept.add(_kind(messages[index]))

    def _is_suspect(self, message: Message, text: str) -> bool:
        if has_calls(message):
            named = all(call["function"]["name"] in text for call in message["tool_calls"])
            return not named or _CALLS not in self._kept
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            return False
        return message["role"] not in self._kept or not _shows(content.strip(), text)


def _kind(message: Message) -> str:
    return _CALLS if has_calls(message) else str(message["role"])


def _shows(content: str, text: str) -> bool:
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _is_lost(messages: Sequence[Message], index: int, text: str, render: Render) -> bool:
    try:
        return render(_marked(messages, [index])) == text
    except InvalidRequest:
        return False


def _marked(messages: Sequence[Message], indices: Sequence[int]) -> list[Message]:
    return [_with_mark(message, _mark(at)) if at in indices else message for at, message in enumerate(messages)]


def _with_mark(message: Message, mark: str) -> Message:
    if not has_calls(message):
        return {**message, "content": mark}
    calls = [{**call, "function": {**call["function"], "arguments": {mark: mark}}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _mark(index: int) -> str:
    return f"message{index}isthere"


def _sentence(message: Message, index: int) -> str:
    what = "the calls of" if has_calls(message) else "what is said in"
    name = f"messages[{index}] (role {message['role']!r}, {str(message.get('content') or '')[:_MAX_SHOWN]!r})"
    return f"the model's chat template passes over {what} {name}: the prompt is the same without"
