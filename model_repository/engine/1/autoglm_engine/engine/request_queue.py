"""The thread-safe door of the engine: what was submitted and cancelled since the last step, and who is in flight."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from autoglm_engine.core import Request
from autoglm_engine.errors import InvalidRequest, QueueFull, ShuttingDown

from .sequence import Waiting


class Inbox:
    """A request is in flight from `submit` to `ended`, and queued from `submit` to `left_queue`."""

    def __init__(self, max_queue: int) -> None:
        self._lock = threading.Lock()
        self._max_queue = max_queue
        self._arrivals: list[Waiting] = []
        self._cancelled: list[str] = []
        self._in_flight: set[str] = set()
        self._num_queued = 0
        self._closed: str | None = None

    def submit(self, request: Request, now: float) -> None:
        """Raises ShuttingDown, QueueFull, or InvalidRequest for an id that is in flight."""
        with self._lock:
            if self._closed is not None:
                raise ShuttingDown(self._closed)
            if request.id in self._in_flight:
                raise InvalidRequest(f"the request id {request.id!r} is in use by a request that has not ended")
            if self._num_queued >= self._max_queue:
                raise QueueFull(f"{self._num_queued} requests wait already, which is the limit; try again later")
            self._in_flight.add(request.id)
            self._num_queued += 1
            self._arrivals.append(Waiting(request, queued_at=now, last_event_at=now))

    def cancel(self, request_ids: Iterable[str]) -> int:
        """How many of them are in flight; those end with the next step."""
        with self._lock:
            found = [request_id for request_id in set(request_ids) if request_id in self._in_flight]
            self._cancelled += found
            return len(found)

    def drain(self) -> tuple[list[Waiting], list[str]]:
        """(arrived, cancelled) since the last call."""
        with self._lock:
            news = self._arrivals, self._cancelled
            self._arrivals, self._cancelled = [], []
            return news

    def left_queue(self, count: int) -> None:
        with self._lock:
            self._num_queued -= count

    def ended(self, request_id: str) -> None:
        """Its id may be used again; a cancel that came too late must not meet the next one of that name."""
        with self._lock:
            self._in_flight.discard(request_id)
            if request_id in self._cancelled:
                self._cancelled = [other for other in self._cancelled if other != request_id]

    def close(self, reason: str) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._closed = reason

    @property
    def has_news(self) -> bool:
        return bool(self._arrivals or self._cancelled)
