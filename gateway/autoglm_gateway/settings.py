"""What the gateway is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1 << 20
TOOL_FORMATS = ("auto", "hermes", "llama", "glm", "glm-xml", "mistral")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`servers`: `host:port` of the gRPC endpoints; of several, the first that works is used. `model`: the name that answers
    carry, and `aliases`: other names for it. `max_body_bytes`: of a request. `deadline_ms`: the most time that an answer
    may take; None leaves it to the server. `tool_format`: the form in which the model calls functions (`tools.parsing`), or
    "auto" for what its chat template tells."""

    servers: tuple[str, ...] = ("127.0.0.1:8001",)
    model: str = "autoglm"
    aliases: Mapping[str, str] = field(default_factory=lambda: {"autoglm-phone-9b": "autoglm"})
    max_body_bytes: int = 4 * MIB
    deadline_ms: int | None = None
    tool_format: str = "auto"

    def __post_init__(self) -> None:
        if self.tool_format not in TOOL_FORMATS:
            raise ValueError(f"tool_format is {self.tool_format!r}; it must be one of {', '.join(TOOL_FORMATS)}")

    def served_as(self, name: str) -> str | None:
        """The model that `name` means; None where it means none."""
        meant = self.aliases.get(name, name)
        return meant if meant == self.model else None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)
