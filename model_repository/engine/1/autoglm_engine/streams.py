"""Which streams speak after a step: new tokens, paced, and heartbeats so that a reader who left is noticed."""

from __future__ import annotations

from collections.abc import Iterable

from .gate import StreamGate
from .sequence import Sequence, Waiting
from .settings import EngineSettings


class StreamPacer:
    def __init__(self, settings: EngineSettings, gate: StreamGate) -> None:
        self._gate = gate
        self._heartbeat = settings.heartbeat_ms / 1e3
        rate = settings.max_events_per_second
        self._seconds_per_event = 1.0 / rate if rate else 0.0

    def speakers(self, running: list[Sequence], now: float) -> list[Sequence]:
        """The streams that have something to say and may."""
        streams = [sequence for sequence in running if sequence.request.stream]
        pause = self._seconds_per_event * len(streams)  # all streams share the rate evenly
        return [sequence for sequence in streams if self._may_speak(sequence, pause, now)]

    def silent(self, queued: Iterable[Waiting], now: float) -> list[Waiting]:
        """Who gets a heartbeat in the queue."""
        streams = (waiting for waiting in queued if waiting.request.stream)
        return [waiting for waiting in streams if self._is_silent(waiting, now) and self._gate_is_open(waiting, now)]

    def _may_speak(self, sequence: Sequence, pause: float, now: float) -> bool:
        if not sequence.output.ready:
            return self._is_silent(sequence, now) and self._gate_is_open(sequence, now)
        if not sequence.sent_any:
            return True
        return now - sequence.last_event_at >= pause and self._gate_is_open(sequence, now)

    def _is_silent(self, source: Sequence | Waiting, now: float) -> bool:
        return now - source.last_event_at >= self._heartbeat

    def _gate_is_open(self, source: Sequence | Waiting, now: float) -> bool:
        return self._gate.may_send(source.request.id, now)
