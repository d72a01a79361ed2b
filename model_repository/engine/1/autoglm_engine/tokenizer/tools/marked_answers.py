"""Answers of marked words, as a chat template renders them: what is compared to find how a model calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .call_form import ID, NAME
from .compared_texts import common_end, common_start

Message = dict[str, Any]
Render = Callable[[list[Message], list[Message], bool], str]  # messages, tools, whether the answer's beginning follows

ALPHA, BETA = "zq_alpha", "zq_beta"  # functions
KEY_B, KEY_A = "zqkeyb", "zqkeya"  # arguments, not by the alphabet
SAID, _OTHER = "zqsaid", "xwtolk"
_LONG_IDS = ("call_zq0123456789abcdef012345", "call_xw0123456789abcdef012345")
_SHORT_IDS = ("zqid0abcd", "xwid0abcd")  # Mistral's templates take 9 letters and digits
_ENDS = " \n\t>]"  # of marks; others may go on
_MAX_ANSWER = 10_000  # characters: published templates need 600, and comparing takes their square
_ASKED = {"role": "user", "content": "zqasked"}


class Unreadable(Exception):
    """Calls are not written in a way that is known here."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one template. `begin`: of renderings, up to an answer's own words; `head`: of those in which the answer does
    not begin as the template begins one; `tail`: what ends a turn; `lead`: the end of `begin` that a model writes."""

    render: Render
    short_ids: bool
    as_text: bool
    begin: str = ""
    head: str = ""
    tail: str = ""
    lead: str = ""

    @classmethod
    def of(cls, render: Render, *, short_ids: bool, as_text: bool) -> Answers:
        """Raises Unreadable, or what `render` raises."""
        bare = cls(render, short_ids, as_text)
        begin = render([_ASKED], _tools(), True)
        texts = [bare.calling((ALPHA, {KEY_B: "zqvalue"})), bare._of({"content": SAID}), bare._of({"content": _OTHER})]
        if ALPHA not in texts[0] or SAID not in texts[1]:
            raise Unreadable
        headed = replace(bare, begin=begin, head=texts[0][: common_start(begin, *texts)])
        is_begun = texts[0].startswith(begin)
        texts = [headed._without_head(text) for text in texts]
        lead, tail = texts[0][: common_start(*texts)], texts[0][len(texts[0]) - common_end(*texts) :]
        lead = lead[: max(at for at in range(len(lead) + 1) if not lead[:at] or lead[at - 1] in _ENDS)]
        return replace(headed, begin=begin + lead, head=headed.head + lead, tail=tail, lead=lead if is_begun else "")

    def calling(self, *calls: tuple[str, Mapping[str, Any]], content: str = "") -> str:
        """An answer after the lead. Raises Unreadable, or what `render` raises."""
        ids = _SHORT_IDS if self.short_ids else _LONG_IDS
        turn = {
            "content": content,
            "tool_calls": [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(given) if self.as_text else dict(given)},
                }
                for call_id, (name, given) in zip(ids, calls, strict=False)
            ],
        }
        return self._of(turn)

    def _of(self, turn: Message) -> str:
        text = self.render([_ASKED, {"role": "assistant", **turn}], _tools(), False)
        if not text.endswith(self.tail):
            raise Unreadable
        return self._without_head(text[: len(text) - len(self.tail)])

    def _without_head(self, text: str) -> str:
        head = next((head for head in (self.begin, self.head) if text.startswith(head)), None)
        if head is None or len(text) - len(head) > _MAX_ANSWER:
            raise Unreadable
        return text[len(head) :]


def with_places(text: str, names: Iterable[str] = (ALPHA, BETA)) -> str:
    """Names and ids become places."""
    for name in names:
        text = text.replace(name, NAME)
    for call_id in (*_LONG_IDS, *_SHORT_IDS):
        text = text.replace(call_id, ID)
    return text


def _tools() -> list[Message]:
    properties = {key: {"type": "string", "description": "a word"} for key in (KEY_B, KEY_A)}
    parameters = {"type": "object", "properties": properties, "required": []}
    return [
        {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}
        for name in (ALPHA, BETA)
    ]
