"""Whether each message of a conversation is in what a chat template makes of it.

A template passes over a role that it does not know, or over calls beside content, without a word, and a model then
answers a conversation that nobody had. A message whose text is not in the prompt as it is may still be there in another
form; so other words are put in its place: where the prompt stays the same, it is lost.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from autoglm_engine.errors import InvalidRequest

from .tools.messages import has_calls

Message = dict[str, Any]
Render = Callable[[list[Message]], str]
Place = tuple[int, int | None]  # a message, and which of its calls

_CALL_SHAPES = frozenset({"one call", "calls", "one call beside text", "calls beside text", "role tool"})
_PLAIN_SHAPES = frozenset({"role system", "role user", "role assistant"})
_MAX_SHAPES = 64  # that are remembered of roles, which are a caller's
_MAX_SEARCHES = 16  # of the whole prompt; who is not found by then is tried
_MAX_TRIALS = 8  # renderings of one message each
_BEGINNING = 64  # characters of a message that are looked for: comparing the rest takes a tenth of searching it
_MAX_SHOWN = 40  # characters of a message


class KeptMessages:
    """Of one template. Calls and uncommon roles, whose text may be anywhere by chance, are tried once each, and what
    is in the prompt as it is costs no other rendering."""

    def __init__(self) -> None:
        self._kept: set[str] = set(_PLAIN_SHAPES)

    def check(self, messages: Sequence[Message], text: str, render: Render) -> None:
        """`text`: what `render` made of the messages. Raises InvalidRequest, which names a message that is lost."""
        suspects = list(self._suspects(messages, text))
        places = [place for index in suspects for place in _places(messages[index], index)]
        if not places:
            return
        secret = secrets.token_hex(8)  # no message of a caller's is taken for a mark
        try:
            marked = set(re.findall(f"{secret}[0-9a-z]+isthere", render(_marked(messages, places, secret))))
        except InvalidRequest:
            return  # it reads what it refuses
        missing = [place for place in places if _mark(place, secret) not in marked]
        for place in missing[:_MAX_TRIALS]:
            if _is_lost(messages, place, text, render, secret):
                raise InvalidRequest(_sentence(messages[place[0]], place))
        if not missing:
            self._remember(map(messages.__getitem__, suspects))

    def _remember(self, messages: Iterable[Message]) -> None:
        for shape in map(_shape, messages):
            if shape in _CALL_SHAPES or len(self._kept) < _MAX_SHAPES:
                self._kept.add(shape)

    def _suspects(self, messages: Sequence[Message], text: str) -> Iterator[int]:
        at, searches = 0, 0  # messages are told in their order: each is looked for where the last one ended
        for index, message in enumerate(messages):
            if _shape(message) not in self._kept:
                if has_calls(message) or message.get("content"):
                    yield index
                continue
            for said in _names(message) or [_said(message)]:
                begin = text.find(said[:_BEGINNING], at) if searches < _MAX_SEARCHES else -1
                if begin >= 0 and text.startswith(said, begin):
                    at = begin + len(said)
                    continue
                searches += 1
                if searches > _MAX_SEARCHES or not _shows(said, text):
                    yield index
                    break


def _names(message: Message) -> list[str]:
    return [call["function"]["name"] for call in message["tool_calls"]] if has_calls(message) else []


def _said(message: Message) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _shape(message: Message) -> str:
    """What a template may tell apart: calls beside text, and several of them, go other ways than one alone."""
    if not has_calls(message):
        return f"role {message['role']}"
    number = "one call" if len(message["tool_calls"]) == 1 else "calls"
    return f"{number} beside text" if message.get("content") else number


def _shows(content: str, text: str) -> bool:
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _places(message: Message, index: int) -> Iterator[Place]:
    if has_calls(message):
        yield from ((index, call) for call in range(len(message["tool_calls"])))
    else:
        yield index, None


def _is_lost(messages: Sequence[Message], place: Place, text: str, render: Render, secret: str) -> bool:
    try:
        return render(_marked(messages, [place], secret)) == text
    except InvalidRequest:
        return False


def _marked(messages: Sequence[Message], places: Sequence[Place], secret: str) -> list[Message]:
    marked = list(messages)
    for place in places:
        index, call = place
        marked[index] = _with_mark(marked[index], call, _mark(place, secret))
    return marked


def _with_mark(message: Message, at: int | None, mark: str) -> Message:
    if at is None:
        return {**message, "content": mark}
    calls = list(message["tool_calls"])
    calls[at] = {**calls[at], "function": {**calls[at]["function"], "arguments": {mark: mark}}}
    return {**message, "tool_calls": calls}


def _mark(place: Place, secret: str) -> str:
    index, call = place
    return f"{secret}m{index}isthere" if call is None else f"{secret}m{index}c{call}isthere"


def _sentence(message: Message, place: Place) -> str:
    index, call = place
    what = "what is said in" if call is None else f"call {call + 1} of {len(message['tool_calls'])} of"
    name = f"messages[{index}] (role {message['role']!r}, {str(message.get('content') or '')[:_MAX_SHOWN]!r})"
    return f"the model's chat template passes over {what} {name}: the prompt is the same without"
