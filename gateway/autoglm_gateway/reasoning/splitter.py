"""An answer's text, whole or in pieces, to what was thought and what was said.

Thinking stands at the beginning, between marks, of which the prompt may have the opening one. Space beside a mark is
layout, and dropped: a template that tells the reasoning again writes its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from autoglm_client import ThinkingMarks

_Steps = Generator[None, None, bool]  # it yields where it cannot go on without more text


@dataclass(frozen=True, slots=True)
class Split:
    reasoning: str = ""
    content: str = ""


class ThinkingSplitter:
    """Of one answer. What it tells, joined, does not depend on how the text is cut. `is_open`: the prompt has opened
    the thinking. Without its closing mark, all is thought; without thinking, the text stays as it is."""

    def __init__(self, marks: ThinkingMarks, *, is_open: bool) -> None:
        self._marks = marks
        self._is_open = is_open
        self._text = ""  # not told yet
        self._ended = False
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._steps = self._split()

    def push(self, text: str) -> Split:
        self._text += text
        return self._told()

    def close(self) -> Split:
        """The text has ended."""
        self._ended = True
        return self._told()

    def _told(self) -> Split:
        next(self._steps, None)
        told = Split("".join(self._reasoning), "".join(self._content))
        self._reasoning.clear()
        self._content.clear()
        return told

    def _split(self) -> _Steps:
        marks = self._marks
        has_begun = yield from self._skip(marks.begin)
        if has_begun or self._is_open:
            yield from self._until(marks.end, self._reasoning)
            if marks.answer_begin and (yield from self._skip(marks.answer_begin)):
                yield from self._until(marks.answer_end, self._content)
                yield from self._more_than_space()
            else:
                yield from self._skip("")
        while True:
            self._content.append(self._take(len(self._text)))
            yield

    def _skip(self, mark: str) -> _Steps:
        """Drops `mark`, where it comes next, and the space before it; "" is space alone."""
        while True:
            begun = self._text.lstrip()
            if begun.startswith(mark) and (begun or self._ended):
                self._text = begun[len(mark) :]
                return True
            if self._ended or not mark.startswith(begun):
                return False
            yield

    def _more_than_space(self) -> _Steps:
        """Waits for that; space alone is dropped."""
        while not self._text.strip():
            if self._ended:
                self._text = ""
                return False
            yield
        return True

    def _until(self, mark: str, told: list[str]) -> _Steps:
        """Tells what comes before `mark`, without the space at both ends, and drops the mark."""
        yield from self._skip("")
        while (at := self._text.find(mark)) < 0 and not self._ended:
            held = _open_end(self._text, mark)
            told.append(self._take(len(self._text[: len(self._text) - held].rstrip())))
            yield
        told.append(self._take(at if at >= 0 else len(self._text)).rstrip())
        self._text = self._text[len(mark) :]
        return at >= 0

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


def _open_end(text: str, mark: str) -> int:
    """Most last characters of `text` that `mark` may begin with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
