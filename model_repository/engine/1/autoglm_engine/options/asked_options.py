"""The options of one request, gathered from several names for them: two that say different things are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autoglm_engine.errors import InvalidRequest


class AskedOptions:
    """`values`: option -> value, in the form that `OptionRules.check` takes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self._names: dict[str, str] = {}

    def put(self, option: str, value: Any, name: str, said: Any = None) -> None:
        """`name`: under which it was given; `said`: as what, where that is not `value`. Raises InvalidRequest where it
        was given before, and differs."""
        if option not in self.values:
            self.values[option], self._names[option] = value, name
        elif not _are_equal(self.values[option], value):
            raise self.contradiction(option, name, value if said is None else said)

    def at_least(self, option: str, value: int, name: str) -> None:
        """`name` asks for something that needs so much. Raises InvalidRequest where 0 was given."""
        if self.values.setdefault(option, value) == 0:
            raise self.contradiction(option, name, True)

    def contradiction(self, option: str, name: str, value: Any) -> InvalidRequest:
        before = self._names.get(option, option)
        return InvalidRequest(
            f"{before} is {shown(self.values[option])} and {name} is {shown(value)}; they say the same thing in two "
            "ways, so give one of them, or both alike"
        )


def shown(value: Any) -> str:
    """A value as a caller wrote it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        value = [item.decode(errors="replace") for item in value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value!r:.40}" if isinstance(value, str) else f"{value!s:.40}"


def _are_equal(one: Any, other: Any) -> bool:
    """A tensor's number has 32 bits, one in JSON has more."""
    if isinstance(one, float) or isinstance(other, float):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)
