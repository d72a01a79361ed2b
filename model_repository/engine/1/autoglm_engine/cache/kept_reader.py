"""Long kept answers are packed, and read, by threads of their own: who submits and who steps has others to serve."""

from __future__ import annotations

from collections.abc import Callable

from autoglm_engine.core import Request

from .tiers import Found

_MAX_SECONDS = 60.0  # it waits for nothing but a thread and a core


class KeptReader:
    """A tier that nobody asks by itself: `Lookups` is told of it where the cache of this process has a long answer.

    `read`: called on a thread that may take its time; None where there is nothing to read any more.
    """

    max_seconds = _MAX_SECONDS

    def __init__(self, read: Callable[[bytes], Found | None]) -> None:
        self._read = read

    def wants(self, request: Request) -> bool:
        return False

    def find(self, key: bytes, request: Request) -> Found | None:
        return self._read(key)

    def keep(self, key: bytes, request: Request, answer: object) -> None:
        """The cache keeps it itself."""

    def forget(self, key: bytes) -> None:
        """As `keep`."""

    def flush(self) -> None:
        """As `keep`."""

    def close(self) -> None:
        """It has nothing."""
