"""Calls as Llama 3 models write them: {"name": ..., "parameters": {...}} at the beginning of a line, with or without
<|python_tag|> before it; several of them are separated by a semicolon, a comma or space."""

from __future__ import annotations

from .call_object import call_object
from .events import Functions, Said, Steps
from .reader import Broken, Reader

TAG = "<|python_tag|>"


def llama(reader: Reader, functions: Functions) -> Steps[None]:
    while True:
        tag = len(TAG) if (yield from reader.has(TAG, 0)) else 0
        try:
            at = yield from reader.after_space(tag)
        except Broken:
            break
        if not tag and (yield from reader.has(TAG, at)):
            yield Said(reader.use(at))
        elif (yield from call_object(reader, at, functions)):
            yield from _separator(reader)
        else:
            yield Said(reader.use(at + 1))
            if (yield from reader.said_until("\n", TAG)) == "\n":
                yield Said(reader.use(1))
    if reader.text:
        yield Said(reader.use(len(reader.text)))


def _separator(reader: Reader) -> Steps[None]:
    """Uses it where another object follows."""
    try:
        at = yield from reader.after_space(0)
        if reader.text[at] not in ";,":
            return
        at = yield from reader.after_space(at + 1)
    except Broken:
        return
    if reader.text[at] == "{":
        reader.use(at)
