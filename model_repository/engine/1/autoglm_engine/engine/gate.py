"""When a stream may send: tokens gather into one event while its reader, or the machine, is behind."""

from __future__ import annotations

from typing import Protocol


class StreamGate(Protocol):
    """Asked by the step thread for every stream with something to say, except for its first tokens and its end."""

    def may_send(self, request_id: str, now: float) -> bool: ...


class AlwaysOpen:
    def may_send(self, request_id: str, now: float) -> bool:
        return True
