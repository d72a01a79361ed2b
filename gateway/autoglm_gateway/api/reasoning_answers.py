"""Answers of a chat with a model that thinks first: `reasoning_content` apart from `content`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from autoglm_client import Piece, Result, ThinkingMarks, TokenLogprob

from autoglm_gateway.reasoning.splitter import Split, ThinkingSplitter

from .answers import ChatShape, Shape


class ChatParts(Shape, Protocol):
    """`ChatShape`, or what splits its content further."""

    def bare(self, number: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]: ...


class ReasoningShape:
    """`inner` gets what was said, as if nothing had been thought. `is_told`: the reasoning is in the answer; else it is
    left out."""

    prefix, whole, chunk = ChatShape.prefix, ChatShape.whole, ChatShape.chunk

    def __init__(self, inner: ChatParts, marks: ThinkingMarks, *, is_told: bool = True) -> None:
        self._inner = inner
        self._marks = marks
        self._is_told = is_told
        self._splitters: dict[int, ThinkingSplitter] = {}

    def opening(self, number: int) -> dict[str, Any] | None:
        return self._inner.opening(number)

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        if number not in self._splitters:
            self._splitters[number] = ThinkingSplitter(self._marks, is_open=piece.prompt_thinks)
        split = _pushed(self._splitters[number], piece.text, is_last=piece.finish_reason is not None)
        part = self._inner.part(number, dataclasses.replace(piece, text=split.content))
        if not (split.reasoning and self._is_told):
            return part
        part = part or self._inner.bare(number, piece.logprobs)
        said = {name: value for name, value in part["delta"].items() if value}
        return {**part, "delta": {"reasoning_content": split.reasoning, **said}}

    def closing(self, number: int, reason: str) -> dict[str, Any] | None:
        return self._inner.closing(number, reason)

    def choice(self, number: int, result: Result, reason: str) -> dict[str, Any]:
        splitter = ThinkingSplitter(self._marks, is_open=result.prompt_thinks)
        split = _pushed(splitter, result.text, is_last=True)
        choice = self._inner.choice(number, dataclasses.replace(result, text=split.content), reason)
        if split.reasoning and self._is_told:
            choice["message"]["reasoning_content"] = split.reasoning
        return choice


def _pushed(splitter: ThinkingSplitter, text: str, *, is_last: bool) -> Split:
    split = splitter.push(text)
    if not is_last:
        return split
    rest = splitter.close()
    return Split(split.reasoning + rest.reasoning, split.content + rest.content)
