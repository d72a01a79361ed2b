"""A thread that does the same again and again, and cannot die unseen."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)
_QUIET_SECONDS = 60.0


class Periodic:
    """Calls `work` every `seconds` until `close`. What that raises is logged as `failure` and its own words, once for
    as long as it is the same and comes again within a minute; the next call comes all the same."""

    def __init__(
        self,
        name: str,
        seconds: float,
        work: Callable[[], object],
        failure: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._work = work
        self._failure = failure
        self._clock = clock
        self._told = ""
        self._failed_at = 0.0
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
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            now = self._clock()
            if said != self._told or now - self._failed_at >= _QUIET_SECONDS:
                _log.warning("%s: %s", self._failure, said)
            self._told, self._failed_at = said, now
