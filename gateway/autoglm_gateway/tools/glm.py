"""Calls as GLM-4 models write them: the function's name on a line of its own, and the arguments, an object, after
it."""

from __future__ import annotations

from contextlib import suppress

from .call_object import arguments_object
from .events import Called, Functions, Said, Steps
from .reader import Broken, Reader

_BLANK = " \t"


def glm(reader: Reader, functions: Functions) -> Steps[None]:
    while True:
        name, at = yield from _head(reader, functions)
        if name:
            reader.use(at)
            yield Called(name)
            yield from arguments_object(reader)
        elif (yield from reader.said_until("\n")):
            yield Said(reader.use(1))
        else:
            return


def _head(reader: Reader, functions: Functions) -> Steps[tuple[str, int]]:
    """The name on this line, and where its arguments begin; no name where there is no call."""
    with suppress(Broken):  # the text ends, or goes on otherwise
        while (end := reader.text.find("\n")) < 0:
            begun = reader.text.strip(_BLANK)
            if not any(name.startswith(begun) for name in functions):
                return "", 0
            yield from reader.more()
        name = reader.text[:end].strip(_BLANK + "\r")
        if name in functions:
            at = yield from reader.after_space(end)
            if reader.text[at] == "{":
                return name, at
    return "", 0
