"""Frees what clients left behind: asks the gate whose client is gone, and has their requests cancelled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from .acks import AckGate
from .core import Event, Stages, Usage
from .wire import Packed, pack_event

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.04


class VanishedWatch:
    """A thread. `cancel` takes engine request ids; `ask` has the detokenizer handle an event, and blocks meanwhile."""

    def __init__(
        self, gate: AckGate, cancel: Callable[[Iterable[str]], object], ask: Callable[[Packed], object]
    ) -> None:
        self._gate = gate
        self._cancel = cancel
        self._ask = ask
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vanished-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            try:
                self._look()
            except Exception as error:  # the detokenizer may be gone; the next look may find it back
                _log.warning("vanished clients cannot be looked for: %s", error)

    def _look(self) -> None:
        if lost := self._gate.lost():
            self._cancel(lost)
        if ack := self._gate.probe():
            self._ask(pack_event(Event("", (), Usage(0, 0, 0), Stages()), ack))
