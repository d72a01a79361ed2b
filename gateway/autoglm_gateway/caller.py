"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant`: its answers are kept apart from those of others. None: nobody had to say who asks."""

    tenant: str | None = None


ANYBODY = Caller()


def caller_of(connection: HTTPConnection) -> Caller:
    """As the layers before the endpoints found out."""
    caller: Caller = getattr(connection.state, "caller", ANYBODY)
    return caller
