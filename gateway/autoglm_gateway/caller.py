"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from . import priorities


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant`: its answers are kept apart from those of others. None: nobody had to say who asks. `priority`: of its
    requests, and the best that they may ask for."""

    tenant: str | None = None
    priority: int = priorities.DEFAULT


ANYBODY = Caller()


def caller_of(connection: HTTPConnection) -> Caller:
    """As the layers before the endpoints found out."""
    caller: Caller = getattr(connection.state, "caller", ANYBODY)
    return caller
