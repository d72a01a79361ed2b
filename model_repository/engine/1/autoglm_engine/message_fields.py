"""Fields of the messages between the models, each held to its type and range. All raise InvalidRequest.

Python's own conversions take too much: `int("12")`, `bool("false")`, `float(True)`, a float of infinity from 1e999.
"""

from __future__ import annotations

import math
from typing import Any

from .errors import InvalidRequest

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_NUMBER = 1e15  # more milliseconds, or seconds of a clock, than there will be


def integer(name: str, value: Any, low: int = 0, high: int = MAX_INT32) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be an integer from {low} to {high}")
    return value


def number(name: str, value: Any, low: float = 0.0, high: float = MAX_NUMBER) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be a number from {low:g} to {high:g}")
    return float(value)


def logprob(name: str, value: Any) -> float:
    """-inf is one: of a token that cannot come."""
    if type(value) not in (int, float) or math.isnan(value):
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be a number")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be true or false")
    return value


def text(name: str, value: Any, most: int | None = None) -> str:
    """At most so many characters."""
    if type(value) is not str:
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be a string")
    if most is not None and len(value) > most:
        raise InvalidRequest(f"{name} has {len(value)} characters; at most {most} are allowed")
    return value


def sequence(name: str, value: Any, size: int | None = None) -> list[Any]:
    if type(value) is not list or (size is not None and len(value) != size):
        wanted = "a list" if size is None else f"a list of {size}"
        raise InvalidRequest(f"{name} is {_shown(value)}; it must be {wanted}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
