"""Strings of a form, cut into pieces between which a model may leave more or less space than its template does."""

from __future__ import annotations

import re
from functools import lru_cache

from .call_form import PLACES
from .events import Steps
from .reader import SPACE, Broken, Reader

Pieces = tuple[str, ...]

_PIECE = re.compile(r"«(?:name|id|index|key)»|<[^<>«»\s]*>?|\[[^\[\]«»\s]*\]|[^\s<\[«]+|\S")
_WORD = re.compile(r"[a-zA-Z0-9_-]*")


@lru_cache(4096)
def pieces(text: str) -> Pieces:
    return tuple(_PIECE.findall(text))


def first_mark(text: str) -> str:
    """What a reader looks for: the first piece, or more of them where it is short; "" where there is none."""
    run = re.match(r"[^\s«]*", text)
    mark = ""
    for piece in pieces(run.group() if run else ""):
        if len(mark) > 2:
            break
        mark += piece
    return mark


def matched(reader: Reader, at: int, wanted: Pieces) -> Steps[int]:
    """Where they end that begin at `at`. Raises Broken."""
    for piece in wanted:
        if piece in PLACES:
            at = yield from word_end(reader, at)
            continue
        if reader.text[at : at + 1] in SPACE:  # or there is no more text
            at = yield from reader.after_space(at)
        if not (yield from reader.has(piece, at)):
            raise Broken
        at += len(piece)
    return at


def word_end(reader: Reader, at: int) -> Steps[int]:
    """Raises Broken where the text ends before."""
    while True:
        found = _WORD.match(reader.text, at)
        end = found.end() if found else at
        if end < len(reader.text):
            return end
        yield from reader.more()
