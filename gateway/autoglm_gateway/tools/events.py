"""What a parser of calls finds in an answer, in its order."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class Said:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the arguments, as JSON, of the call that began last."""

    text: str


Event = Said | Called | Arguments
Functions = Mapping[str, Mapping[str, Any]]  # name -> JSON Schema of its arguments

Value = TypeVar("Value")
Steps = Generator[Event | None, None, Value]  # None: it needs more text than there is
