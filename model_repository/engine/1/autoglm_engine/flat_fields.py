"""The fields of a dataclass as they are. `dataclasses.astuple` and `asdict` copy each value deeply, which was half of
what packing an event took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any


def names_of(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def values_getter(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the values of an instance of `kind`, in the order of the fields, of which there are two or more."""
    return attrgetter(*names_of(kind))
