"""Lines of JSON, written by a thread, so that no request waits for a disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from autoglm_client.printable import json_text

STDERR = "-"
_STDERR_FD = 2
_STOP_SECONDS = 5.0
_MODE = 0o600  # it says who asked when

Line = Mapping[str, Any]


class LogWriter:
    """To the file `target`, or to stderr where it is `-`. At most `capacity` lines wait. A file that is moved away
    (logrotate) is begun anew. Raises OSError where it cannot be opened."""

    def __init__(self, target: str, capacity: int) -> None:
        self._path = None if target == STDERR else Path(target)
        self._fd = _STDERR_FD if self._path is None else _opened(self._path)
        self._queue: queue.Queue[Line | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._refused = 0  # of the event loop alone
        self._lost = 0  # of the thread alone, as is the next
        self._told = 0

    @property
    def dropped(self) -> int:
        """Lines that there was no room for, or that could not be written. The log says so, too, once it can."""
        return self._refused + self._lost

    def __enter__(self) -> LogWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What waits is written, if that takes no longer than a few seconds."""
        try:
            self._queue.put(None, timeout=_STOP_SECONDS)
        except queue.Full:
            return
        self._thread.join(_STOP_SECONDS)

    def write(self, line: Line) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._refused += 1

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            found = [self._queue.get(), *self._waiting()]
            goes_on = None not in found
            self._write([line for line in found if line is not None])
        if self._path is not None:
            os.close(self._fd)

    def _waiting(self) -> list[Line | None]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]  # nobody else takes from it

    def _write(self, lines: Sequence[Line]) -> None:
        dropped = self.dropped
        told = [*lines, {"dropped": dropped}] if dropped > self._told else lines
        try:
            self._follow()
            _write_all(self._fd, "".join(json_text(line) + "\n" for line in told).encode())
            self._told = dropped
        except Exception:  # of whatever kind: the thread goes on, and the loss is told
            self._lost += len(lines)

    def _follow(self) -> None:
        if self._path is None:
            return
        try:
            kept = os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            kept = False
        if not kept:
            moved, self._fd = self._fd, _opened(self._path)
            os.close(moved)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _MODE)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
