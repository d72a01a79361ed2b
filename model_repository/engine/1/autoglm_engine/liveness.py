"""Notices that the engine's process died. Triton itself goes on saying that it is ready, and what was under way never
ends; a server that can answer nothing had better end, so that whoever runs it sees that and starts it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .board_file import Board
from .boards import SHARED_MEMORY, find_board
from .periodic import Periodic
from .server_identity import ServerIdentity

_POLL_SECONDS = 0.5


class EngineWatch:
    """A thread for another model of the same server. `died` is called once; again, where it raises."""

    def __init__(self, server: ServerIdentity, died: Callable[[], object], folder: Path = SHARED_MEMORY) -> None:
        self._server = server
        self._died = died
        self._folder = folder
        self._board: Board | None = None
        self._is_told = False
        self._thread = Periodic("engine-watch", _POLL_SECONDS, self._tell, "the engine cannot be watched")

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._thread.close(timeout)

    def look(self) -> bool:
        """Whether the engine's process died. One that ended in order did not; another may be loaded after it.

        The board stays open, so that a death shows also when somebody removed what the dead engine left behind."""
        if self._board is None:
            self._board = find_board(self._folder, self._server)
        if self._board is None:
            return False
        if self._board.is_abandoned:
            return True
        if self._board.has_ended:
            self._board.close()
            self._board = None
        return False

    def _tell(self) -> None:
        if not self._is_told and self.look():
            self._died()
            self._is_told = True
