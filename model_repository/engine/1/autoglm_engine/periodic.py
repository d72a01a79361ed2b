"""A thread that does the same again and again, and cannot die unseen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Periodic:
    """Calls `work` every `seconds` until `close`. What that raises is logged, once for as long as it stays the same, as
    `failure` and its own words; the next call comes all the same."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object], failure: str) -> None:
        self._seconds = seconds
        self._work = work
        self._failure = failure
        self._told = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._closing.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            self.once()

    def once(self) -> None:
        try:
            self._work()
            self._told = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._told:
                _log.warning("%s: %s", self._failure, said)
            self._told = said
