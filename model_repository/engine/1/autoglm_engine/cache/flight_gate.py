"""Who of those that share a computation may be sent something."""

from __future__ import annotations

from autoglm_engine.engine.stream_pacer import AlwaysOpen, StreamGate

from .shared_request import SharedRequest


class FlightGate:
    """The engine's gate: a flight may speak when one of its readers can listen. With one reader that wants its answer
    whole, it keeps silent until the end."""

    def __init__(self, inner: StreamGate | None = None) -> None:
        self._inner = inner or AlwaysOpen()
        self.flights: dict[str, SharedRequest] = {}

    def may_send(self, request_id: str, now: float) -> bool:
        flight = self.flights.get(request_id)
        return self.may_read(request_id, now) if flight is None else self._may_speak(flight, now)

    def may_read(self, request_id: str, now: float) -> bool:
        return self._inner.may_send(request_id, now)

    def _may_speak(self, flight: SharedRequest, now: float) -> bool:
        readers = list(flight.members)
        if len(readers) > 1 and not all(member.request.stream for member in readers):
            return True
        return any(member.request.stream and self.may_read(member.request.id, now) for member in readers)
