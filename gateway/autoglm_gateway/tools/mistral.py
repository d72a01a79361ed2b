"""Calls as Mistral models write them: [TOOL_CALLS] and a JSON list of objects, or [TOOL_CALLS]name[ARGS]{...} for
each."""

from __future__ import annotations

import re

from .call_object import arguments_object, call_object
from .events import Called, Functions, Said, Steps
from .hermes import use_after_space
from .reader import Broken, Reader

MARK, ID_MARK, ARGUMENTS_MARK = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_WORD = re.compile(r"[a-zA-Z0-9_-]*")


def mistral(reader: Reader, functions: Functions) -> Steps[None]:
    while (yield from reader.said_until(MARK)):
        called = (yield from _listed(reader, functions)) or (yield from _named(reader, functions))
        if not called:
            yield Said(reader.use(len(MARK)))


def _listed(reader: Reader, functions: Functions) -> Steps[bool]:
    try:
        at = yield from reader.after_space(len(MARK))
    except Broken:
        return False
    is_list = reader.text[at] == "["
    if not (yield from call_object(reader, at + is_list, functions)):
        return False
    if is_list:
        yield from _others(reader, functions)
    return True


def _others(reader: Reader, functions: Functions) -> Steps[None]:
    """Of the list, after its first call."""
    try:
        at = yield from reader.after_space(0)
        while reader.text[at] == "," and (yield from call_object(reader, at + 1, functions)):
            at = yield from reader.after_space(0)
    except Broken:
        return
    yield from use_after_space(reader, "]")


def _named(reader: Reader, functions: Functions) -> Steps[bool]:
    try:
        at = yield from reader.after_space(len(MARK))
        begin, at = at, (yield from _word_end(reader, at))
        name = reader.text[begin:at]
        if (yield from reader.has(ID_MARK, at)):
            at = yield from _word_end(reader, at + len(ID_MARK))
        if (yield from reader.has(ARGUMENTS_MARK, at)):
            at += len(ARGUMENTS_MARK)
        at = yield from reader.after_space(at)
    except Broken:
        return False
    if name not in functions or reader.text[at] != "{":
        return False
    reader.use(at)
    yield Called(name)
    yield from arguments_object(reader)
    return True


def _word_end(reader: Reader, at: int) -> Steps[int]:
    """Raises Broken where the text ends before."""
    while True:
        found = _WORD.match(reader.text, at)
        end = found.end() if found else at
        if end < len(reader.text):
            return end
        yield from reader.more()
