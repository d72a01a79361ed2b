"""Where a JSON value ends that arrives in pieces, and whether what came of it can still become one (RFC 8259)."""

from __future__ import annotations

import re
from enum import Enum, auto

_SPACE = " \t\r\n"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_PART = re.compile(r"[-+.eE0-9]+")
_LITERALS = {"t": "true", "f": "false", "n": "null"}


class _Wants(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    NEXT = auto()  # a comma, or the end of what is open
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    NUMBER = auto()
    LITERAL = auto()
    NOTHING = auto()


class JsonScanner:
    """Of one value, from its first character on. `done`: it is complete; `broken`: the next character cannot be
    right."""

    def __init__(self) -> None:
        self._open: list[str] = []  # the brackets that are open
        self._wants = _Wants.VALUE
        self._is_key = False
        self._word = ""  # of a number, what came; of a literal, what lacks
        self._hex_digits = 0  # that lack
        self.broken = False

    @property
    def done(self) -> bool:
        return self._wants is _Wants.NOTHING

    def feed(self, text: str, at: int = 0) -> int:
        """From `at` on; where it stopped: at the end of `text`, after the value's last character, or at the wrong
        one."""
        while at < len(text) and not (self.done or self.broken):
            at += self._step(text, at)
        return at

    def _step(self, text: str, at: int) -> int:
        """How many characters that takes."""
        match self._wants:
            case _Wants.STRING:
                return self._in_string(text, at)
            case _Wants.ESCAPE | _Wants.HEX:
                return self._in_escape(text[at])
            case _Wants.NUMBER:
                return self._in_number(text, at)
            case _Wants.LITERAL:
                return self._in_literal(text[at])
        return 1 if text[at] in _SPACE and (self._open or self._wants is not _Wants.VALUE) else self._between(text[at])

    def _between(self, character: str) -> int:
        wants = self._wants
        if wants is _Wants.NEXT and character == ",":
            self._wants = _Wants.KEY if self._open[-1] == "{" else _Wants.VALUE
        elif wants is _Wants.COLON and character == ":":
            self._wants = _Wants.VALUE
        elif self._ends(character):
            self._open.pop()
            self._value_ended()
        elif wants in (_Wants.KEY, _Wants.KEY_OR_END) and character == '"':
            self._is_key, self._wants = True, _Wants.STRING
        elif wants in (_Wants.VALUE, _Wants.VALUE_OR_END):
            return self._begin(character)
        else:
            return self._break()
        return 1

    def _ends(self, character: str) -> bool:
        if self._wants not in (_Wants.NEXT, _Wants.KEY_OR_END, _Wants.VALUE_OR_END):
            return False
        return character == ("}" if self._open[-1] == "{" else "]")

    def _begin(self, character: str) -> int:
        if character in "{[":
            self._open.append(character)
            self._wants = _Wants.KEY_OR_END if character == "{" else _Wants.VALUE_OR_END
        elif character == '"':
            self._is_key, self._wants = False, _Wants.STRING
        elif character in "-0123456789":
            self._word, self._wants = "", _Wants.NUMBER
            return 0
        elif character in _LITERALS:
            self._word, self._wants = _LITERALS[character][1:], _Wants.LITERAL
        else:
            return self._break()
        return 1

    def _in_string(self, text: str, at: int) -> int:
        if plain := _PLAIN.match(text, at):
            return plain.end() - at
        if text[at] == "\\":
            self._wants = _Wants.ESCAPE
        elif text[at] != '"':
            return self._break()  # a control character
        elif self._is_key:
            self._wants = _Wants.COLON
        else:
            self._value_ended()
        return 1

    def _in_escape(self, character: str) -> int:
        if self._wants is _Wants.HEX:
            if character not in "0123456789abcdefABCDEF":
                return self._break()
            self._hex_digits -= 1
            self._wants = _Wants.HEX if self._hex_digits else _Wants.STRING
        elif character == "u":
            self._hex_digits, self._wants = 4, _Wants.HEX
        elif character in '"\\/bfnrt':
            self._wants = _Wants.STRING
        else:
            return self._break()
        return 1

    def _in_number(self, text: str, at: int) -> int:
        if part := _NUMBER_PART.match(text, at):
            self._word += part.group()
            return part.end() - at
        if not _NUMBER.fullmatch(self._word):
            return self._break()
        self._value_ended()
        return 0

    def _in_literal(self, character: str) -> int:
        if character != self._word[0]:
            return self._break()
        self._word = self._word[1:]
        if not self._word:
            self._value_ended()
        return 1

    def _value_ended(self) -> None:
        self._wants = _Wants.NEXT if self._open else _Wants.NOTHING

    def _break(self) -> int:
        self.broken = True
        return 0
