"""Calls as Hermes and Qwen models write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from .call_object import call_object
from .events import Functions, Said, Steps
from .reader import Broken, Reader

BEGIN, END = "<tool_call>", "</tool_call>"


def hermes(reader: Reader, functions: Functions) -> Steps[None]:
    while (yield from reader.said_until(BEGIN)):
        if (yield from call_object(reader, len(BEGIN), functions)):
            yield from use_after_space(reader, END)
        else:
            yield Said(reader.use(len(BEGIN)))


def use_after_space(reader: Reader, mark: str) -> Steps[None]:
    """Uses `mark` and the space before it, where they come next."""
    try:
        at = yield from reader.after_space(0)
    except Broken:
        return
    if (yield from reader.has(mark, at)):
        reader.use(at + len(mark))
