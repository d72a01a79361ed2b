"""Calls in an answer's text, as forms describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from .call_form import CallForm
from .call_object import Fields, arguments_object, call_object
from .events import Called, Functions, Said, Steps
from .pattern import Pieces, first_mark, matched, pieces
from .reader import Broken, Reader
from .tagged_arguments import begins_with_arguments, tagged_arguments


@dataclass(frozen=True, slots=True)
class Marks:
    """Of a form, as they are looked for. `first`: "" where calls stand at the beginning of a line. `fields`: where a
    call is a JSON object, which is no part of the other marks then. `ends`: what arguments end with, in tags."""

    form: CallForm
    first: str
    opening: Pieces
    middle: Pieces
    between: Pieces | None
    closing: Pieces
    fields: Fields | None
    ends: Pieces

    @classmethod
    @lru_cache(256)
    def of(cls, form: CallForm) -> Marks:
        opening, between, closing, fields = form.opening, form.between, form.closing, None
        if form.name_field:
            closing = closing.partition("}")[2]
            opening = opening[: opening.rindex("{")]
            between = None if between is None else between.partition("}")[2].rpartition("{")[0]
            others = re.findall(r'"(\w+)"\s*:', form.opening + form.closing)
            fields = Fields.of(form.name_field, form.arguments_field, others)
        return cls(
            form,
            first_mark(opening),
            pieces(opening),
            pieces(form.middle),
            None if between is None else pieces(between),
            pieces(closing),
            fields,
            _ends(closing, between),
        )

    def late(self) -> Iterator[Marks]:
        """Models leave out the first of several marks, that of a section above all: the same from each mark on."""
        for at, piece in enumerate(self.opening):
            if not at or (piece[0] in "<[" and len(piece) > 5):
                yield replace(self, first=piece if at else self.first, opening=self.opening[at:])


def _ends(closing: str, between: str | None) -> Pieces:
    """The first piece of either; the shorter one, where the other goes on from it."""
    first, other = pieces(closing)[:1], pieces(closing if between is None else between)[:1]
    if first and other and (first[0].startswith(other[0]) or other[0].startswith(first[0])):
        return (min(first[0], other[0]),)
    return (*first, *other)


def read_calls(reader: Reader, forms: Sequence[CallForm], functions: Functions) -> Steps[None]:
    """`forms`: one or more; either all of them have a first mark, or none."""
    marks = [Marks.of(form) for form in forms]
    if not marks[0].first:
        return _in_lines(reader, marks, functions)
    return _marked(reader, [late for form in marks for late in form.late()], functions)


def _marked(reader: Reader, forms: Sequence[Marks], functions: Functions) -> Steps[None]:
    while mark := (yield from reader.said_until(*dict.fromkeys(form.first for form in forms))):
        for form in forms:
            if form.first == mark and (yield from _section(reader, form, functions)):
                break
        else:
            yield Said(reader.use(len(mark)))


def _in_lines(reader: Reader, forms: Sequence[Marks], functions: Functions) -> Steps[None]:
    form = forms[0]
    also = form.form.also
    while True:
        tag = yield from _length_of(reader, also, 0)
        try:
            at = yield from reader.after_space(tag)
        except Broken:
            break
        if not tag and (yield from _length_of(reader, also, at)):
            yield Said(reader.use(at))
        elif (yield from _call(reader, at, form, functions)):
            for one in forms:
                yield from _rest(reader, one, functions)
        else:
            yield Said(reader.use(at + 1))
            if (yield from reader.said_until("\n", *also)) == "\n":
                yield Said(reader.use(1))
    if reader.text:
        yield Said(reader.use(len(reader.text)))


def _length_of(reader: Reader, marks: Sequence[str], at: int) -> Steps[int]:
    """Of the one that is there; 0 where there is none."""
    for mark in marks:
        if (yield from reader.has(mark, at)):
            return len(mark)
    return 0


def _section(reader: Reader, form: Marks, functions: Functions) -> Steps[bool]:
    """Tells all of its calls; False: there is none, and nothing was used."""
    try:
        at = yield from matched(reader, 0, form.opening)
    except Broken:
        return False
    if not (yield from _call(reader, at, form, functions)):
        return False
    yield from _rest(reader, form, functions)
    return True


def _rest(reader: Reader, form: Marks, functions: Functions) -> Steps[None]:
    """Of a section, after a call."""
    while True:
        try:
            at = -1 if form.between is None else (yield from matched(reader, 0, form.between))
        except Broken:
            at = -1
        if at >= 0 and (yield from _call(reader, at, form, functions)):
            continue
        with suppress(Broken):  # as much as there is of it
            for piece in form.closing:
                reader.use((yield from matched(reader, 0, (piece,))))
        return


def _call(reader: Reader, at: int, form: Marks, functions: Functions) -> Steps[bool]:
    """False: there is no call of a known function, and nothing was used."""
    if form.fields is not None:
        return (yield from call_object(reader, at, functions, form.fields))
    try:
        name, at = yield from _head(reader, at, form, functions)
    except Broken:
        return False
    reader.use(at)
    yield Called(name)
    if form.form.tags is None:
        yield from arguments_object(reader)
    else:
        yield from tagged_arguments(reader, form.form, form.ends, functions[name])
    return True


def _head(reader: Reader, at: int, form: Marks, functions: Functions) -> Steps[tuple[str, int]]:
    """The name, and where its arguments begin. Raises Broken."""
    at = yield from reader.after_space(at)
    for name in sorted(functions, key=len, reverse=True):
        if not (yield from reader.has(name, at)):
            continue
        end = at + len(name)
        try:
            begin = yield from matched(reader, end, form.middle)
            if form.form.tags is not None:
                if (yield from begins_with_arguments(reader, begin, form.form, form.ends)):
                    return name, begin
                continue
            begin = yield from reader.after_space(begin)
        except Broken:
            continue
        is_in_line = not form.first and not form.middle
        if reader.text[begin] == "{" and ("\n" in reader.text[end:begin] or not is_in_line):
            return name, begin
    raise Broken
