"""What the gateway is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .ranges import check_ranges

MIB = 1 << 20
_LONGEST_S = 3600
_CONNECTION_RANGES: dict[str, tuple[float, float]] = {
    "max_connections": (1, 1_000_000),
    "max_head_bytes": (1024, 1 << 20),
    "head_s": (0.001, _LONGEST_S),
    "body_s": (0.001, _LONGEST_S),
    "idle_s": (0.001, _LONGEST_S),
    "unread_s": (0.001, _LONGEST_S),
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`max_connections`: open at one time; `max_head_bytes`: of a request's line and headers. Seconds: `head_s` for a
    request's line and headers to arrive, `body_s` for its body, `idle_s` from one request to the next, `unread_s` until
    a client that reads nothing of its answer is given up."""

    max_connections: int = 1024
    max_head_bytes: int = 64 << 10
    head_s: float = 10
    body_s: float = 30
    idle_s: float = 30
    unread_s: float = 60

    def __post_init__(self) -> None:
        check_ranges(self, _CONNECTION_RANGES)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`servers`: `host:port` of the gRPC endpoints; of several, the first that works is used. `model`: the name that answers
    carry, and `aliases`: other names for it. `max_body_bytes`: of a request, and `max_held_bytes`: of all whose answers
    are under way. `deadline_ms`: the most time that an answer may take; None leaves it to the server."""

    servers: tuple[str, ...] = ("127.0.0.1:8001",)
    model: str = "autoglm"
    aliases: Mapping[str, str] = field(default_factory=lambda: {"autoglm-phone-9b": "autoglm"})
    max_body_bytes: int = 4 * MIB
    max_held_bytes: int = 256 * MIB
    deadline_ms: int | None = None
    connections: ConnectionLimits = ConnectionLimits()

    def served_as(self, name: str) -> str | None:
        """The model that `name` means; None where it means none."""
        meant = self.aliases.get(name, name)
        return meant if meant == self.model else None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)
