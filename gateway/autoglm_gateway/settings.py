"""What the gateway is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .connection_limits import ConnectionLimits

MIB = 1 << 20


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
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)

    def served_as(self, name: str) -> str | None:
        """The model that `name` means; None where it means none."""
        meant = self.aliases.get(name, name)
        return meant if meant == self.model else None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)
