"""Which requests speak after a step: new tokens, paced, and heartbeats so that a reader who left is noticed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from autoglm_engine.core import Request
from autoglm_engine.settings.model import EngineSettings

from .sequence import Sequence, Waiting


class StreamGate(Protocol):
    """Asked by the step thread for every stream with something to say, except for its first tokens and its end."""

    def may_send(self, request_id: str, now: float) -> bool: ...


class AlwaysOpen:
    def may_send(self, request_id: str, now: float) -> bool:
        return True


class StreamPacer:
    def __init__(self, settings: EngineSettings, gate: StreamGate) -> None:
        self._gate = gate
        self._heartbeat = settings.heartbeat_ms / 1e3
        rate = settings.max_events_per_second
        self._seconds_per_event = 1.0 / rate if rate else 0.0

    def streams_due(self, running: list[Sequence], now: float) -> list[Sequence]:
        """The streams that have something to say and may."""
        streams = [sequence for sequence in running if sequence.request.stream]
        pause = self._seconds_per_event * len(streams)  # all streams share the rate evenly
        return [sequence for sequence in streams if self._may_emit(sequence, pause, now)]

    def heartbeats_due(
        self, running: Iterable[Sequence], queued: Iterable[Waiting], now: float
    ) -> list[Sequence | Waiting]:
        """Who gets a heartbeat: in the queue, and in a slot those whose answer comes whole."""
        sources: list[Sequence | Waiting] = [sequence for sequence in running if not sequence.request.stream]
        sources.extend(queued)
        return [source for source in sources if self._is_heartbeat_due(source, now)]

    def _may_emit(self, sequence: Sequence, pause: float, now: float) -> bool:
        if not sequence.output.ready:
            return self._is_heartbeat_due(sequence, now)
        if not sequence.sent_any:
            return True
        return now - sequence.last_event_at >= pause and self._gate_is_open(sequence, now)

    def _is_heartbeat_due(self, source: Sequence | Waiting, now: float) -> bool:
        heartbeat = self._heartbeat_of(source.request)
        return heartbeat is not None and now - source.last_event_at >= heartbeat and self._gate_is_open(source, now)

    def _heartbeat_of(self, request: Request) -> float | None:
        if request.heartbeat_ms is not None:
            return request.heartbeat_ms / 1e3
        return self._heartbeat if request.stream else None

    def _gate_is_open(self, source: Sequence | Waiting, now: float) -> bool:
        return self._gate.may_send(source.request.id, now)
