"""How a model marks its thinking, read off its chat template: `<think>` and `</think>`, say.

A template is rendered with an assistant's reasoning and without, with thinking where an answer stands, and up to where
an answer begins; a pair of marks counts where it stands around the one, is taken away with the other, or is what the
template itself writes there. A template whose marks are no pair of tags has none: its answers stay whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of a message, as transformers knows them

_NAMES_IT = re.compile(r"think|thought|reason", re.IGNORECASE)
# The last one is Cohere's; `re` has no way to say that two parts differ as opening and closing marks do.
_TAGS = re.compile(r"</?([\w.:-]+)>|\[/?([A-Z_]+)\]|◁/?(\w+)▷|<\|(?:START|END|begin|end)_(?:of_)?(\w+)\|>")
_CLOSING = (("<", "</"), ("[", "[/"), ("◁", "◁/"))
_WORDS = (("START_", "END_"), ("begin_", "end_"))
_THINKING_TOKEN = re.compile(
    r"</?[\w.:-]*think[\w.:-]*>|\[/?THINK\]|◁/?think▷|<\|(START|END)_THINKING\|>|<\|(begin|end)_of_thought\|>"
)
_ANSWER_TAG = re.compile("<(answer|response)>")
_QUESTION, _THOUGHT, _ANSWER = "Questionhere", "Thoughthere", "Answerhere"
_ASKED: Message = {"role": "user", "content": _QUESTION}
# What turns it on, or off, in published templates.
_SWITCHES: tuple[Mapping[str, bool], ...] = (
    {},
    {"enable_thinking": True, "thinking": True},
    {"enable_thinking": False, "thinking": False},
)


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """Around what a model thinks, at the beginning of its answer; and around the answer after it, "" for none."""

    begin: str
    end: str
    answer_begin: str = ""
    answer_end: str = ""

    def is_open(self, text: str) -> bool:
        """Whether a prompt ends inside of thinking, which it has begun."""
        return text.rstrip().endswith(self.begin)

    def is_closed(self, text: str) -> bool:
        """Whether a prompt ends behind it, so that none will come."""
        return text.rstrip().endswith(self.end)

    def end_empty(self, text: str) -> bool:
        """Whether a prompt ends with both of them, and nothing between."""
        return self.is_closed(text) and self.is_open(text.rstrip().removesuffix(self.end))

    def is_open_in(self, said: str, before: str) -> bool:
        """The same of a message that the answer goes on with: `said` of it, behind the prompt `before`."""
        begin, end = said.rfind(self.begin), said.rfind(self.end)
        return begin > end if max(begin, end) >= 0 else self.is_open(before)


@dataclass(frozen=True, slots=True)
class PromptThinking:
    """Of a model that thinks before it answers. `is_open`: the prompt ends inside of that; `is_closed`: behind it."""

    marks: ThinkingMarks
    is_open: bool
    is_closed: bool


class Render(Protocol):
    def __call__(
        self, messages: Sequence[Message], variables: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> str | None:
        """None where the template refuses that."""
        ...


def is_thinking_token(content: str) -> bool:
    """Some checkpoints call these special, which would keep them out of the text; but they are what tells thinking."""
    return _THINKING_TOKEN.fullmatch(content) is not None


def thinking_marks(source: str, render: Render) -> ThinkingMarks | None:
    """Of the template `source`, which `render` renders; None where it has none."""
    if not _NAMES_IT.search(source):
        return None
    for look in (_around_reasoning, _before_the_answer, _in_instructions):
        for switches in _SWITCHES:
            if marks := look(render, switches):
                return marks
    return next((marks for marks in _pairs(source) if _is_taken_away(marks, render)), None)


def _around_reasoning(render: Render, switches: Mapping[str, bool]) -> ThinkingMarks | None:
    """Of an assistant in the history."""
    reasoning = dict.fromkeys(REASONING_FIELDS, _THOUGHT)
    said = {"role": "assistant", "content": _ANSWER, **reasoning}
    text = render([_ASKED, said], switches, add_generation_prompt=False) or ""
    before, found, after = text.partition(_QUESTION)[2].partition(_THOUGHT)
    if not found or _ANSWER not in after:
        return None
    return next((m for m in _pairs(before) if m.is_open(before) and after.lstrip().startswith(m.end)), None)


def _before_the_answer(render: Render, switches: Mapping[str, bool]) -> ThinkingMarks | None:
    """An opening mark that ends the prompt and stands before no answer of the history; or two marks with nothing
    between them, where an answer begins."""
    said = {"role": "assistant", "content": _ANSWER}
    told = render([_ASKED, said], switches, add_generation_prompt=False) or ""
    own = told.partition(_QUESTION)[2].partition(_ANSWER)[0]
    begun = (render([_ASKED], switches, add_generation_prompt=True) or "").partition(_QUESTION)[2]
    for marks in _pairs(begun) + _pairs(own):
        if marks.is_open(begun) and not marks.is_open(own):
            return marks
        if marks.end_empty(begun) or marks.end_empty(own):
            return marks
    return None


def _in_instructions(render: Render, switches: Mapping[str, bool]) -> ThinkingMarks | None:
    """That tell the model to think, in a system message of the template's own."""
    text = (render([_ASKED], switches, add_generation_prompt=True) or "").partition(_QUESTION)[0]
    both = [marks for marks in _pairs(text) if marks.begin in text and marks.end in text]
    around = next((marks for marks in both if _ANSWER_TAG.fullmatch(marks.begin)), None)
    told = next((marks for marks in both if is_thinking_token(marks.begin)), None)
    if told is None or around is None:
        return told
    return replace(told, answer_begin=around.begin, answer_end=around.end)


def _is_taken_away(marks: ThinkingMarks, render: Render) -> bool:
    """Out of an earlier answer."""
    said = {"role": "assistant", "content": f"{marks.begin}\n{_THOUGHT}\n{marks.end}\n\n{_ANSWER}"}
    text = render([_ASKED, said, _ASKED], {}, add_generation_prompt=True) or ""
    return _ANSWER in text and _THOUGHT not in text


def _pairs(text: str) -> list[ThinkingMarks]:
    """Each tag in it, opening or closing, with its other half; in their order."""
    return list(dict.fromkeys(_pair(found.group()) for found in _TAGS.finditer(text)))


def _pair(tag: str) -> ThinkingMarks:
    for opening, closing in _CLOSING:
        if tag.startswith(closing):
            return ThinkingMarks(opening + tag[len(closing) :], tag)
    for opening, closing in _WORDS:
        if opening in tag:
            return ThinkingMarks(tag, tag.replace(opening, closing))
        if closing in tag:
            return ThinkingMarks(tag.replace(closing, opening), tag)
    opening, closing = next(pair for pair in _CLOSING if tag.startswith(pair[0]))
    return ThinkingMarks(tag, closing + tag[len(opening) :])
