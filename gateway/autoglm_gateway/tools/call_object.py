"""A call that is one JSON object, {"name": ..., "arguments": {...}}, in any order of its fields.

The names of the fields differ by model: `function` for `name`, `parameters` for `arguments`, and a form's own.
Arguments may be an object, or one written as a string. An `id`, a `type` and what else a form has are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .events import Arguments, Called, Functions, Steps
from .json_scanner import JsonScanner
from .reader import Broken, Reader


@dataclass(frozen=True, slots=True)
class Fields:
    """Their names."""

    name: frozenset[str]
    arguments: frozenset[str]
    skipped: frozenset[str]

    @classmethod
    def of(cls, name: str, arguments: str, others: Iterable[str]) -> Fields:
        names, values = {name, "name", "function"}, {arguments, "arguments", "parameters"}
        return cls(frozenset(names), frozenset(values), frozenset({*others, "id", "type"} - names - values))


def call_object(reader: Reader, at: int, functions: Functions, fields: Fields) -> Steps[bool]:
    """Tells the call that begins at `at`, and uses all up to its end, with what stands before it. False: there is none
    of a known function, and nothing was used."""
    try:
        yield from _call(reader, at, functions, fields)
    except Broken:
        return False
    return True


def arguments_object(reader: Reader) -> Steps[None]:
    """Tells the arguments that the text begins with, as far as they are JSON."""
    scanner = JsonScanner()
    while True:
        if used := scanner.feed(reader.text):
            yield Arguments(reader.use(used))
        if scanner.done or scanner.broken or reader.ended:
            return
        yield None


def _call(reader: Reader, at: int, functions: Functions, fields: Fields) -> Steps[None]:
    name, arguments = "", "{}"
    at = yield from _expect(reader, at, "{")
    while True:
        key, at = yield from _key(reader, at)
        if key in fields.arguments and name and (yield from reader.character(at)) == "{":
            reader.use(at)
            yield Called(name)
            yield from arguments_object(reader)
            yield from _rest(reader)
            return
        if key not in fields.name | fields.arguments | fields.skipped:
            raise Broken
        begin, at = at, (yield from _value_end(reader, at))
        if key in fields.name:
            name = _name(reader.text[begin:at], functions)
        elif key in fields.arguments:
            arguments = _object(reader.text[begin:at])
        at = yield from reader.after_space(at)
        if reader.text[at] == "}":
            break
        at = yield from _expect(reader, at, ",")
    if not name:
        raise Broken
    reader.use(at + 1)
    yield Called(name)
    yield Arguments(arguments)


def _rest(reader: Reader) -> Steps[None]:
    """Uses what an object has after its arguments; nothing where that is wrong."""
    try:
        at = yield from reader.after_space(0)
        while reader.text[at] != "}":
            at = yield from _expect(reader, at, ",")
            _, at = yield from _key(reader, at)
            at = yield from _value_end(reader, at)
            at = yield from reader.after_space(at)
        reader.use(at + 1)
    except Broken:
        return


def _key(reader: Reader, at: int) -> Steps[tuple[str, int]]:
    """And where its value begins."""
    begin = yield from reader.after_space(at)
    if reader.text[begin] != '"':
        raise Broken
    end = yield from _value_end(reader, begin)
    key = _read(reader.text[begin:end])
    at = yield from _expect(reader, end, ":")
    return key, (yield from reader.after_space(at))


def _value_end(reader: Reader, at: int) -> Steps[int]:
    scanner = JsonScanner()
    while True:
        at = scanner.feed(reader.text, at)
        if scanner.done:
            return at
        if scanner.broken:
            raise Broken
        yield from reader.more()


def _expect(reader: Reader, at: int, character: str) -> Steps[int]:
    at = yield from reader.after_space(at)
    if reader.text[at] != character:
        raise Broken
    return at + 1


def _name(value: str, functions: Functions) -> str:
    name = _read(value)
    if not isinstance(name, str) or name not in functions:
        raise Broken
    return name


def _object(value: str) -> str:
    """The object's text."""
    read = _read(value)
    if isinstance(read, str):
        value, read = read, _read(read)
    if read is None:
        return "{}"
    if not isinstance(read, dict):
        raise Broken
    return value


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # also of a number that is too long for Python
        raise Broken from None
