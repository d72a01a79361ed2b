"""Notices that the engine's process died. Triton itself goes on saying that it is ready, and what was under way never
ends; a server that can answer nothing had better end, so that whoever runs it sees that and starts it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from .acks import SHARED_MEMORY, find_board, is_abandoned

_POLL_SECONDS = 0.5


class EngineWatch:
    """A thread for another model of the same server, told apart by `server_pid`. `died` is called once."""

    def __init__(self, server_pid: int, died: Callable[[], object], folder: Path = SHARED_MEMORY) -> None:
        self._server_pid = server_pid
        self._died = died
        self._folder = folder
        self._board: Path | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def look(self) -> bool:
        """Whether the engine's board was left behind. A board that was closed in order is gone, and is no death."""
        if self._board is None:
            self._board = find_board(self._folder, self._server_pid)
        return self._board is not None and is_abandoned(self._board)

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            if self.look():
                self._died()
                return
