"""Which kept answers count, in a cache that several servers share: those of the current epoch.

An epoch is a random token that lies in Redis beside the answers, and each answer carries the one it was kept in. A
flush puts another token there, which one write does for all answers and all servers. Tokens never come again, so one
that this server has seen replaced and that lies there again (Redis read back an old snapshot) brings nothing back.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from enum import Enum

from .entry import EPOCH_BYTES

_MAX_RETIRED = 4096


class Sight(Enum):
    SAME = "same"
    NEW = "new"  # another server flushed, or Redis lost everything: `accept` it
    MISSING = "missing"  # whoever comes first begins one
    RETIRED = "retired"  # this server flushed it, or it is no token at all: it has to be replaced


class CacheEpochs:
    """Thread-safe. `current` is None until the first one was seen, unless this server begins one itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retired: OrderedDict[bytes, None] = OrderedDict()
        self._current: bytes | None = None
        self._is_unwritten = False

    @property
    def current(self) -> bytes | None:
        with self._lock:
            return self._current

    @property
    def unwritten(self) -> bytes | None:
        """The current one, where Redis has to be told of it before anything else."""
        with self._lock:
            return self._current if self._is_unwritten else None

    def flush(self) -> None:
        """Begin another one. What was kept before is out from here on, whether Redis can be told or not."""
        with self._lock:
            self._replace(new_epoch())
            self._is_unwritten = True

    def written(self, token: bytes) -> None:
        """Redis was told of it."""
        with self._lock:
            self._is_unwritten = self._is_unwritten and token != self._current

    def counts(self, token: bytes | None) -> bool:
        """Whether answers count that were found beside `token`."""
        with self._lock:
            return token is not None and token == self._current and not self._is_unwritten

    def look(self, token: bytes | None) -> Sight:
        """What lies in Redis, where nothing is unwritten."""
        with self._lock:
            if token is None:
                return Sight.MISSING
            if len(token) != EPOCH_BYTES or token in self._retired:
                return Sight.RETIRED
            return Sight.SAME if token == self._current else Sight.NEW

    def accept(self, token: bytes) -> None:
        with self._lock:
            if not self._is_unwritten:
                self._replace(token)

    def _replace(self, token: bytes) -> None:
        if self._current is not None:
            self._retired[self._current] = None
        if len(self._retired) > _MAX_RETIRED:
            self._retired.popitem(last=False)
        self._current = token


def new_epoch() -> bytes:
    return secrets.token_bytes(EPOCH_BYTES)
