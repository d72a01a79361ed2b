"""Values as programs write them, to JSON: words and quotes of Python, keys without quotes, quotes of a model's own."""

from __future__ import annotations

import json
import re

from .events import Steps
from .reader import Broken, Reader

_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_PLAIN = re.compile(r"[^\s,:()\[\]{}'\"<>=]+")
_MAX_DEPTH = 100
_HALF = re.compile("[\ud800-\udfff]")  # of a UTF-16 pair
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}


def as_json(text: str, *, is_python: bool) -> str | None:
    """None for what is no value."""
    text = text.strip()
    try:
        json.loads(text, parse_constant=_refuse)
        return text
    except (ValueError, RecursionError):
        pass
    if not is_python:
        return None
    reader = Reader()
    reader.text, reader.ended = text + "\n", True
    steps = literal(reader, 0, "'")
    try:
        while True:
            next(steps)
    except StopIteration as done:
        written, end = done.value
        return str(written) if end == len(text) else None
    except Broken:
        return None


def raw_string(reader: Reader, at: int, quote: str) -> Steps[tuple[str, int]]:
    """A string without escapes, as JSON, and where it ends: at a quote that the next argument or the end of a call
    follows. Raises Broken."""
    begin = at + len(quote)
    end = begin - len(quote)
    with reader.once(f"end of {quote}", begin):
        while end < begin or reader.text[at] not in ",)]}":
            end = yield from reader.find(quote, end + len(quote))
            at = yield from reader.after_space(end + len(quote))
    return _quoted(reader.text[begin:end]), end + len(quote)


def literal(reader: Reader, at: int, quote: str, depth: int = 0) -> Steps[tuple[str, int]]:
    """The value that begins at `at`, as JSON, and where it ends. `quote`: of strings, beside those of JSON and Python.
    Raises Broken."""
    if depth > _MAX_DEPTH:
        raise Broken
    at = yield from reader.after_space(at)
    for mark in dict.fromkeys((quote, '"', "'")):
        if (yield from reader.has(mark, at)):
            value, at = yield from _string(reader, at + len(mark), mark)
            return _quoted(value), at
    if reader.text[at] in "{[":
        return (yield from _container(reader, at, quote, depth))
    word, at = yield from _plain(reader, at)
    if word in _WORDS:
        return _WORDS[word], at
    try:
        json.loads(word, parse_constant=_refuse)
    except ValueError:
        raise Broken from None
    return word, at


def _container(reader: Reader, at: int, quote: str, depth: int) -> Steps[tuple[str, int]]:
    opened = reader.text[at]
    closed = "}" if opened == "{" else "]"
    items: list[str] = []
    at = yield from reader.after_space(at + 1)
    while reader.text[at] != closed:
        if items:
            if reader.text[at] != ",":
                raise Broken
            at = yield from reader.after_space(at + 1)
        key = ""
        if opened == "{":
            key, at = yield from _key(reader, at, quote)
        value, at = yield from literal(reader, at, quote, depth + 1)
        items.append(key + value)
        at = yield from reader.after_space(at)
    return f"{opened}{', '.join(items)}{closed}", at + 1


def _key(reader: Reader, at: int, quote: str) -> Steps[tuple[str, int]]:
    for mark in dict.fromkeys((quote, '"', "'")):
        if (yield from reader.has(mark, at)):
            key, at = yield from _string(reader, at + len(mark), mark)
            break
    else:
        key, at = yield from _plain(reader, at)
    at = yield from reader.after_space(at)
    if reader.text[at] != ":":
        raise Broken
    return f"{_quoted(key)}: ", at + 1


def _plain(reader: Reader, at: int) -> Steps[tuple[str, int]]:
    """A word, which ends where something else begins."""
    begin = at
    while _PLAIN.fullmatch((yield from reader.character(at))):
        at += 1
    if at == begin:
        raise Broken
    return reader.text[begin:at], at


def _string(reader: Reader, at: int, quote: str) -> Steps[tuple[str, int]]:
    """After its first quote. A longer quote has no escapes in it."""
    if len(quote) > 1:
        end = yield from reader.find(quote, at)
        return reader.text[at:end], end + len(quote)
    value = ""
    while (character := (yield from reader.character(at))) != quote:
        if character == "\\":
            escaped, at = yield from _escaped(reader, at + 1, quote)
            value += escaped
        else:
            value, at = value + character, at + 1
    return value, at + 1


def _escaped(reader: Reader, at: int, quote: str) -> Steps[tuple[str, int]]:
    """After the backslash; one that escapes nothing stands for itself."""
    character = yield from reader.character(at)
    if character in (quote, "\\", '"', "'", "/"):
        return character, at + 1
    if character in _ESCAPES:
        return _ESCAPES[character], at + 1
    for letter, count in (("x", 2), ("u", 4), ("U", 8)):
        if character == letter:
            yield from reader.character(at + count)
            digits = reader.text[at + 1 : at + 1 + count]
            if re.fullmatch("[0-9a-fA-F]+", digits) and int(digits, 16) < 0x110000:
                return chr(int(digits, 16)), at + 1 + count
    return "\\" + character, at + 1


def _quoted(value: str) -> str:
    """As JSON. Escapes of Python and JSON can make halves of pairs, which no text can hold; as escapes they can stand,
    and two that fit are one character."""
    return json.dumps(value, ensure_ascii=_HALF.search(value) is not None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
