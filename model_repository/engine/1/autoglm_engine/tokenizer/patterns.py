"""The regular expressions in a tokenizer.json, and which of them may take for ever: the library's engine backtracks.

`is_tame` is about the form alone, and rather says no. It takes what published tokenizers have: quantified classes one
after the other, groups that are repeated not at all or an exact number of times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ENCODING_PARTS = ("normalizer", "pre_tokenizer")
_MAX_REPEATS = 3  # of no bound, one after the other: each may be tried at each place of what the one before took
_QUANTIFIER = re.compile(r"[*+?]|\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\}")
_BACK_REFERENCE = re.compile(r"\\[1-9]|\\[kg][<'{]|\(\?(?:R|\d|&|P[>=]|\()")
_GROUP_HEAD = re.compile(r"\?(?:#|[:=!>|~]|<[=!]|<\w+>|'\w+'|P<\w+>|[a-zA-Z^-]*[:)])")


@dataclass(slots=True)
class _Group:
    num_repeats: int = 0  # of no bound, in one alternative
    max_repeats: int = 0  # in all that are finished
    is_ambiguous: bool = False  # it may match one text in several ways

    def next_alternative(self) -> None:
        self.max_repeats = max(self.max_repeats, self.num_repeats)
        self.num_repeats = 0


def patterns_of(tokenizer_json: str, parts: Sequence[str] = ENCODING_PARTS) -> list[str]:
    """In their order, each once."""
    raw = json.loads(tokenizer_json)
    return list(dict.fromkeys(pattern for part in parts for pattern in _patterns(raw.get(part))))


def is_tame(pattern: str) -> bool:
    """Whether its form alone says that it takes no longer than some polynomial of the text's length."""
    if _BACK_REFERENCE.search(pattern):
        return False
    groups = [_Group()]
    position, last = 0, None  # `last`: the group that has just ended, which a quantifier would repeat
    while position < len(pattern):
        character, quantifier = pattern[position], _QUANTIFIER.match(pattern, position)
        if quantifier is not None:
            position = quantifier.end()
            if not _may_repeat(groups[-1], last, quantifier):
                return False
            if position < len(pattern) and pattern[position] in "?+":  # lazy, or possessive
                position += 1
            last = None
            continue
        last = None
        if character == "\\":
            position += _escape_length(pattern, position)
        elif character == "[":
            position = _end_of_class(pattern, position)
        elif character == "(":
            groups.append(_Group())
            head = _GROUP_HEAD.match(pattern, position + 1)
            if head is not None and head[0].endswith(")"):  # flags alone
                groups.pop()
            position = head.end() if head else position + 1
        elif character == ")" and len(groups) > 1:
            last = _closed(groups)
            position += 1
        else:
            if character == "|":
                groups[-1].next_alternative()
                groups[-1].is_ambiguous = True
            position += 1
    groups[-1].next_alternative()
    return len(groups) == 1 and groups[0].max_repeats <= _MAX_REPEATS


def _may_repeat(outer: _Group, repeated: _Group | None, quantifier: re.Match[str]) -> bool:
    """Notes the quantifier in the group that it stands in. False: it repeats what may match in several ways."""
    is_exact = quantifier["low"] is not None and not quantifier["comma"]
    if is_exact:
        return True
    is_optional = quantifier[0] == "?"
    if repeated is not None and repeated.is_ambiguous and not is_optional:
        return False
    outer.is_ambiguous = True
    if not is_optional and not quantifier["high"]:
        outer.num_repeats += 1
    return True


def _closed(groups: list[_Group]) -> _Group:
    group = groups.pop()
    group.next_alternative()
    groups[-1].num_repeats += group.max_repeats
    groups[-1].is_ambiguous |= group.is_ambiguous
    return group


def _escape_length(pattern: str, position: int) -> int:
    """Of `\\p{L}`, `\\x{1F600}` and the like as of `\\s`."""
    if (
        pattern[position + 1 : position + 2] in ("p", "P", "x", "u", "N")
        and pattern[position + 2 : position + 3] == "{"
    ):
        return max(2, pattern.find("}", position) + 1 - position)
    return 2


def _end_of_class(pattern: str, position: int) -> int:
    """Classes may stand in classes."""
    depth, position = 1, position + 1
    if pattern[position : position + 1] == "^":
        position += 1
    if pattern[position : position + 1] == "]":  # the first one is a member
        position += 1
    while position < len(pattern) and depth:
        if pattern[position] == "\\":
            position += 1
        elif pattern[position] == "[":
            depth += 1
        elif pattern[position] == "]":
            depth -= 1
        position += 1
    return position


def _patterns(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]
        for value in part.values():
            yield from _patterns(value)
    elif isinstance(part, list):
        for value in part:
            yield from _patterns(value)
