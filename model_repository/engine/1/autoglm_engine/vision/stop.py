"""Ending what is computed for an image when nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autoglm_engine.errors import GivenUp


class Stop:
    """Of one encode. Any thread may `ask` for the end; the one that encodes looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_asked = False
        self._end: Callable[[], object] | None = None

    def ask(self) -> None:
        with self._lock:
            self._is_asked = True
            if self._end is not None:
                self._end()
                self._end = None

    def check(self) -> None:
        """Raises GivenUp once it was asked for."""
        if self._is_asked:
            raise GivenUp("nobody wants this image any more")

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """What is done meanwhile comes back soon after `end`, which is called at most once. As `check` raises."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None
