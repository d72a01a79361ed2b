"""Answers of a chat in which functions may be called, and the chunks of such answers."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any

from autoglm_client import Piece, Result, TokenLogprob

from autoglm_gateway.tools.events import Arguments, Called, Event, Said
from autoglm_gateway.tools.parsing import CallParser
from autoglm_gateway.tools.use import ToolUse

from .answers import ChatShape

_LETTERS = string.ascii_letters + string.digits


class ToolShape:
    """A `ChatShape` whose text is split into content and calls. Log-probabilities stay with the tokens: a chunk has
    those of the text that it was made of, be that a call."""

    prefix, whole, chunk = ChatShape.prefix, ChatShape.whole, ChatShape.chunk

    def __init__(self, chat: ChatShape, use: ToolUse) -> None:
        self._chat = chat
        self._use = use
        self._choices: dict[int, _Choice] = {}

    def opening(self, number: int) -> dict[str, Any] | None:
        self._choices[number] = _Choice(self._use)
        return self._chat.opening(number)

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        delta = self._choices[number].delta(piece.text, is_last=piece.finish_reason is not None)
        if not delta and not piece.logprobs:
            return None
        return {**self._chat.bare(number, piece.logprobs), "delta": delta}

    def bare(self, number: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._chat.bare(number, logprobs)

    def closing(self, number: int, reason: str) -> dict[str, Any] | None:
        return self._chat.closing(number, self._choices[number].reason(reason))

    def choice(self, number: int, result: Result, reason: str) -> dict[str, Any]:
        choice = _Choice(self._use)
        delta = choice.delta(result.text, is_last=True)
        whole = self._chat.choice(number, result, choice.reason(reason))
        whole["message"]["content"] = delta.get("content")
        if calls := delta.get("tool_calls"):
            whole["message"]["tool_calls"] = [{name: call[name] for name in call if name != "index"} for call in calls]
        return whole


class _Choice:
    """One answer so far."""

    def __init__(self, use: ToolUse) -> None:
        self._parser: CallParser = use.parser()
        self._short_ids = use.short_ids
        self._num_calls = 0

    def delta(self, text: str, *, is_last: bool) -> dict[str, Any]:
        events = self._parser.push(text)
        return self._delta([*events, *self._parser.close()] if is_last else events)

    def reason(self, reason: str) -> str:
        return "tool_calls" if reason == "stop" and self._num_calls else reason

    def _delta(self, events: Iterable[Event]) -> dict[str, Any]:
        """A call that begins has an entry with its id and name; what comes of its arguments at once is in it, too."""
        content, entries = "", dict[int, dict[str, Any]]()
        for event in events:
            match event:
                case Said(text):
                    content += text
                case Called(name):
                    self._num_calls += 1
                    entries[self._num_calls - 1] = self._head(name)
                case Arguments(text):
                    number = self._num_calls - 1
                    entry = entries.setdefault(number, {"index": number, "function": {"arguments": ""}})
                    entry["function"]["arguments"] += text
        return {**({"content": content} if content else {}), **({"tool_calls": [*entries.values()]} if entries else {})}

    def _head(self, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        return {
            "index": self._num_calls - 1,
            "id": call_id(is_short=self._short_ids),
            "type": "function",
            "function": function,
        }


def call_id(*, is_short: bool) -> str:
    """`is_short`: of 9 letters and digits, as Mistral's chat templates take them."""
    if is_short:
        return "".join(secrets.choice(_LETTERS) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
