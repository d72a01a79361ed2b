"""Text that arrives in pieces, for parsers that are written as if it were all there.

A parser is a generator: it yields events, and None where it cannot go on without more text. It decides by what the text
is, never by where it was cut, so that the same events come of every cutting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .events import Said, Steps

SPACE = " \t\r\n"


class Broken(Exception):
    """The text is not what a parser looks for, or ends before."""


class Reader:
    """`text`: what came and was not used yet. `ended`: there will be no more."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._missed: dict[str, int] = {}  # what the last characters do not have, and how many these are

    def use(self, count: int) -> str:
        used, self.text = self.text[:count], self.text[count:]
        return used

    def more(self) -> Steps[None]:
        """Raises Broken at the end."""
        if self.ended:
            raise Broken
        yield None

    def character(self, at: int) -> Steps[str]:
        """Raises Broken where the text ends before."""
        while len(self.text) <= at:
            yield from self.more()
        return self.text[at]

    def after_space(self, at: int) -> Steps[int]:
        """Where the next character is that is none. Raises Broken."""
        while (yield from self.character(at)) in SPACE:
            at += 1
        return at

    def has(self, mark: str, at: int) -> Steps[bool]:
        """Whether `mark` is at this place."""
        while len(self.text) < at + len(mark):
            if self.ended or not mark.startswith(self.text[at:]):
                return False
            yield None
        return self.text.startswith(mark, at)

    def find(self, mark: str, at: int) -> Steps[int]:
        """Raises Broken where it does not come."""
        with self.once(mark, at):
            while (found := self.text.find(mark, at)) < 0:
                at = max(at, len(self.text) - len(mark) + 1)  # what was searched has no beginning of it
                yield from self.more()
        return found

    @contextmanager
    def once(self, wanted: str, at: int) -> Iterator[None]:
        """Around a search from `at` on that can only fail at the end of the text. Raises Broken where the same search
        has: an answer of many calls without an end would else be searched to its end for each of them."""
        if self.ended and len(self.text) - at <= self._missed.get(wanted, -1):
            raise Broken
        try:
            yield
        except Broken:
            self._missed[wanted] = len(self.text) - at
            raise

    def said_until(self, *marks: str) -> Steps[str]:
        """Tells all before the first of the marks, which is returned and not used; "" at the end of the text."""
        while True:
            places = [(at, mark) for mark in marks if (at := self.text.find(mark)) >= 0]
            open_ = 0 if self.ended or places else max(open_end(self.text, mark) for mark in marks)
            count = min(places)[0] if places else len(self.text) - open_
            if count:
                yield Said(self.use(count))
            if places:
                return min(places)[1]
            if self.ended:
                return ""
            yield None


def open_end(text: str, mark: str) -> int:
    """Most last characters of `text` that `mark` may begin with."""
    for count in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - count :]):
            return count
    return 0
