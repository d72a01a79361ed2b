"""What connections are allowed: a group of the gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import check_ranges

_LONGEST_S = 3600
_RANGES: dict[str, tuple[float, float]] = {
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
        check_ranges(self, _RANGES)
