"""Notices that the engine's process died. Triton itself goes on saying that it is ready, and what was under way never
ends; a server that can answer nothing had better end, so that whoever runs it sees that and starts it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from autoglm_engine.system.periodic import Periodic

from .file import Board
from .finder import SHARED_MEMORY, boards_of
from .server_identity import ServerIdentity

_POLL_SECONDS = 0.5


class EngineWatch:
    """A thread for another model of the same server. `died` is called once; again, where it raises."""

    def __init__(self, server: ServerIdentity, died: Callable[[], object], folder: Path = SHARED_MEMORY) -> None:
        self._server = server
        self._died = died
        self._folder = folder
        self._boards: dict[bytes, Board] = {}
        self._is_told = False
        self._thread = Periodic("engine-watch", _POLL_SECONDS, self._tell, "the engine cannot be watched")

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        self._thread.close(timeout)

    def look(self) -> bool:
        """Whether the process of an engine died that requests go to. One that ended in order did not die; nor does one
        count that nobody asked yet, or asks any more, while another lives.

        The boards stay open, so that a death shows also when somebody removed what the dead engine left behind."""
        self._open_new()
        self._let_go(board for board in self._boards.values() if board.has_ended)
        dead = [board for board in self._boards.values() if board.is_abandoned]
        if any(board.is_asked for board in dead) or len(dead) == len(self._boards):
            return bool(dead)
        self._let_go(dead)
        return False

    def _open_new(self) -> None:
        for board in boards_of(self._folder, self._server):
            if board.id in self._boards:
                board.close()
            else:
                self._boards[board.id] = board

    def _let_go(self, boards: Iterable[Board]) -> None:
        for board in list(boards):
            self._boards.pop(board.id).close()

    def _tell(self) -> None:
        if not self._is_told and self.look():
            self._died()
            self._is_told = True
