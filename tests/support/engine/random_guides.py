"""Random JSON schemas and regular expressions, and what it means that an answer keeps to one."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = dict[str, Any]

NAMES = ("name", "größe", "x", "items", "a b", "次", 'quo"te')
_WORDS = st.sampled_from(["a", "Ω", "no", "yes", "two words", "", "数", '"', "\\"])


def _bounds(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    ordered = st.tuples(values, values).map(sorted)
    return ordered.map(lambda pair: {low: pair[0], high: pair[1]}) | st.just({})


_STRINGS = st.one_of(
    _bounds("minLength", "maxLength", st.integers(0, 12)).map(lambda bounds: {"type": "string", **bounds}),
    st.sampled_from(["date", "time", "uuid", "email", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from(["^[a-z]{1,4}$", "^(ab|c)+d$", "^[0-9]{3}-[A-F]+$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
)
_NUMBERS = st.one_of(
    _bounds("minimum", "maximum", st.integers(-500, 500)).map(lambda bounds: {"type": "integer", **bounds}),
    _bounds("minimum", "maximum", st.integers(-20, 20)).map(lambda bounds: {"type": "number", **bounds}),
)
_LEAVES = st.one_of(
    _STRINGS,
    _NUMBERS,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.lists(st.one_of(_WORDS, st.integers(-9, 9), st.none(), st.booleans()), min_size=1, max_size=4).map(
        lambda values: {"enum": _distinct(values)}
    ),
    _WORDS.map(lambda word: {"const": word}),
)


def _distinct(values: list[Any]) -> list[Any]:
    return [json.loads(text) for text in dict.fromkeys(json.dumps(value) for value in values)]


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    required = [name for name in names if draw(st.booleans())]
    properties = {name: draw(inner) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    low, high = sorted((draw(st.integers(0, 3)), draw(st.integers(0, 3))))
    return {"type": "array", "items": draw(inner), "minItems": low, "maxItems": high}


def _compound(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    some = st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})
    return st.one_of(_objects(inner), _arrays(inner), some)


SCHEMAS = st.recursive(_LEAVES, _compound, max_leaves=8)

_ATOMS = st.sampled_from(["a", "b1", "Ω", "数", "[a-z]", "[0-9A-F]", "[^x]", r"\.", "-", " "])


def _expressions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = inner.map(lambda part: f"({part})")
    counts = st.tuples(st.integers(0, 2), st.integers(1, 3)).map(lambda pair: f"{{{pair[0]},{pair[0] + pair[1]}}}")
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(group, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(group, counts | st.sampled_from(["?", "+", "*"])).map("".join),
    )


REGEXES = st.recursive(_ATOMS, _expressions, max_leaves=6)


def _formats() -> jsonschema.FormatChecker:
    """jsonschema's, but for the year 0000: RFC 3339 has it, Python's dates do not. It is a leap year like 2000."""
    formats = jsonschema.FormatChecker(jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers)

    @formats.checks("date", ValueError)
    def is_date(value: object) -> bool:
        if isinstance(value, str):
            year, rest = value[:4], value[4:]
            datetime.date.fromisoformat(f"{'2000' if year == '0000' else year}{rest}")
        return True

    return formats


def check_json(schema: Schema, text: str) -> None:
    """Raises jsonschema.ValidationError or ValueError where `text` is no instance, its formats included."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=_formats())
    validator.validate(json.loads(text))


def check_regex(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text, re.DOTALL), f"{text!r} does not match {pattern!r}"
