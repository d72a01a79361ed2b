"""What a profile asks: prompts of a file, or some that are built in. Endless: they are repeated as often as is
needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoglm_client.options import GenerationOptions
from autoglm_client.types import Message, Prompt

_SUBJECTS = (
    "a lighthouse",
    "the moon",
    "bread",
    "chess",
    "rivers",
    "glass",
    "bees",
    "winter",
    "maps",
    "bridges",
    "tea",
    "radio",
    "paper",
    "clocks",
    "gardens",
    "volcanoes",
)
_FORMS = (
    "What is the first thing a child should know about {}?",
    "Write four lines about {} for a calendar.",
    "Explain to a visitor from far away why people care about {}, and give two examples from history.",
    "List three common mistakes that people make when they talk about {}, and correct each of them in one sentence.",
)


@dataclass(frozen=True, slots=True)
class PromptRequest:
    prompt: Prompt
    options: GenerationOptions


def built_in(options: GenerationOptions) -> Iterator[PromptRequest]:
    """Questions of several lengths; none comes twice, so that nothing is answered from memory."""
    for turn in itertools.count():
        ending = f" Begin with the number {turn + 1}." if turn else ""
        for form, subject in itertools.product(_FORMS, _SUBJECTS):
            yield PromptRequest([Message("user", form.format(subject) + ending)], options)


def repeated(asked: Sequence[PromptRequest]) -> Iterator[PromptRequest]:
    return itertools.cycle(asked)
