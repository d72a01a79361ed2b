"""Arguments that a template writes one by one: how, told by renderings of marked ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .call_form import KEY, Tags
from .compared_texts import cuts
from .marked_answers import KEY_A, KEY_B, Unreadable

After = Callable[[Mapping[str, Any]], str]  # arguments -> what follows the call's name

_MAX_BETWEEN = 500  # characters between two arguments
_WORD, _OTHER = "zqvalue", "xwworth"
_NUMBER = 31337
_AWKWARD = "zq<a> & \"b\"\n'c' {d} [e] \\f 天"
_TYPED: Mapping[str, Any] = {
    "integer": _NUMBER,
    "number": 31337.5,
    "boolean": True,
    "null": None,
    "object": {"zqin": "zqinner"},
    "array": [_NUMBER, "zqitem"],
}


def find_tags(after: After) -> tuple[str, Tags, str]:
    """What stands between the name and the first argument, the arguments, and what follows the last one. Raises
    Unreadable."""
    number = after({KEY_B: _NUMBER})
    before, tail = _around(number, KEY_B, str(_NUMBER))
    opened, closed = _around(after({KEY_B: _WORD}), KEY_B, _WORD)
    quote = closed[: len(closed) - len(tail)] if closed.endswith(tail) else ""
    if quote and not opened.endswith(quote):
        raise Unreadable
    between = {"string": opened.removesuffix(quote), "integer": before}
    middle, parts, closing = _in_two(after, quote)
    python, is_literal = [], bool(quote)
    start = len(number[: number.find(KEY_B)]) + len(KEY_B)
    for kind, value in _TYPED.items():
        text = after({KEY_B: value})
        written = text[start : len(text) - len(tail)]
        if KEY_B not in text and value is None:
            continue  # left out
        spelled, is_python = _spelled(written, value, between, is_literal=is_literal)
        between[kind] = written.removesuffix(spelled)
        python += [kind] if is_python else []
    text = after({KEY_B: _AWKWARD})[start:]
    wrapper = _wrapper(text, between["string"] + quote, quote + tail, is_literal=is_literal)
    is_raw = len(quote) == 1 and _AWKWARD in text
    before_key, separator, after_value = parts
    if not all(text.strip() for text in between.values()) or not (is_literal or after_value.strip()):
        raise Unreadable  # space alone tells no end of a key or of a string
    return (
        middle,
        Tags(before_key, between, after_value, separator, quote, wrapper, tuple(python), is_literal, is_raw),
        closing,
    )


def _around(text: str, key: str, value: str) -> tuple[str, str]:
    """What stands between key and value, and what follows the value."""
    at = text.find(key)
    begin = text.find(value, at + len(key))
    if at < 0 or begin < 0:
        raise Unreadable
    return text[at + len(key) : begin], text[begin + len(value) :]


def _in_two(after: After, quote: str) -> tuple[str, tuple[str, str, str], str]:
    """What stands before the first argument, what before a key, between arguments and after a value, and what follows
    the last one."""
    text, none = after({KEY_B: _WORD, KEY_A: _OTHER}), after({})
    keys = [(KEY_B, _WORD), (KEY_A, _OTHER)]
    if text.find(KEY_A) < text.find(KEY_B):
        keys.reverse()
    (first, value), (second, last) = keys
    before, _, rest = text.partition(first)
    rest = rest.partition(value)[2].removeprefix(quote)
    between = rest.replace(first, KEY).partition(second)[0]
    end = rest.partition(last)[2].removeprefix(quote).replace(second, KEY)
    return _parted(before, between, end, none)


def _parted(before: str, between: str, end: str, none: str) -> tuple[str, tuple[str, str, str], str]:
    """`none`: what is written where there are no arguments."""
    if len(between) > _MAX_BETWEEN:
        raise Unreadable
    allowed = list(cuts(between))
    for after_value in reversed([at for at in allowed if end.startswith(between[:at])]):
        for before_key in (at for at in allowed if at >= after_value and before.endswith(between[at:])):
            key = between[before_key:]
            opened, closed = before.removesuffix(key), end[after_value:]
            if opened + closed == none:
                return opened, (key, between[after_value:before_key], between[:after_value]), closed
    raise Unreadable


def _spelled(written: str, value: Any, between: Mapping[str, str], *, is_literal: bool) -> tuple[str, bool]:
    """The end of `written` that is the value, and whether it is as Python has it."""
    for spelled, is_python in ((json.dumps(value), False), (_compact(value), False), (repr(value), True)):
        if written.endswith(spelled):
            return spelled, is_python
    if is_literal and written.startswith(between["integer"]):
        return written.removeprefix(between["integer"]), False
    raise Unreadable


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _wrapper(text: str, before: str, after: str, *, is_literal: bool) -> tuple[str, str]:
    """What a string is put into that markup is in."""
    if not text.startswith(before) or not text.endswith(after):
        raise Unreadable
    body = text[len(before) : len(text) - len(after)]
    opened, found, closed = body.partition(_AWKWARD)
    if not found and not is_literal:
        raise Unreadable
    return (opened, closed) if found else ("", "")
