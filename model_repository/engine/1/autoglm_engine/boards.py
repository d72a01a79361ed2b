"""Finding the boards of a model's own engine in shared memory, between everything else that lies there."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from .board_file import Board, board_id, board_name, is_locked
from .errors import Unavailable
from .own_files import open_own
from .seal import BOARD_ID_BYTES, Kind, Seal, board_id_of, forged
from .server_identity import ServerIdentity
from .wire import Ack, Packed

SHARED_MEMORY = Path("/dev/shm")
_MAX_OPEN_BOARDS = 4  # an engine that was loaded again has a new board; the old one's memory is let go


class EngineBoard:
    """The tokenizer's side: the board of the engine that runs now. Thread-safe."""

    def __init__(self, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._server = server
        self._folder = folder
        self._lock = threading.Lock()
        self._board: Board | None = None

    @property
    def seal(self) -> Seal:
        """Raises Unavailable where no engine is loaded."""
        with self._lock:
            return self._seal()

    def _seal(self) -> Seal:
        if self._board is not None and self._board.is_over:
            self._board.close()
            self._board = None
        if self._board is None:
            self._board = find_board(self._folder, self._server)
        if self._board is None:
            raise Unavailable("the engine is not loaded; try again later")
        return self._board.seal


class EventBoards:
    """The detokenizer's side: opens events that its own engine sealed."""

    def __init__(self, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._server = server
        self._folder = folder
        self._boards: OrderedDict[bytes, Board] = OrderedDict()

    def open(self, sealed: Packed) -> tuple[Packed, Callable[[Ack], None]]:
        """The event, and how it is acknowledged. Raises InvalidRequest for what that engine did not write."""
        board = self._board(board_id_of(sealed))  # which is opened only if it is this user's own: `own_files`
        return board.seal.open(Kind.EVENT, sealed), board.acknowledge

    def _board(self, wanted: bytes) -> Board:
        if wanted in self._boards:
            return self._boards[wanted]
        board = Board.open(self._folder / board_name(wanted)) if len(wanted) == BOARD_ID_BYTES else None
        if board is None or board.server != self._server:
            if board is not None:
                board.close()
            raise forged(Kind.EVENT)
        self._boards[wanted] = board
        while len(self._boards) > _MAX_OPEN_BOARDS:
            self._boards.popitem(last=False)[1].close()
        return board


def find_board(folder: Path, server: ServerIdentity) -> Board | None:
    """The board of that server's engine, of the one that is meant, if it has not ended in order."""
    for path in own_boards(folder):
        board = Board.open(path)
        if board is not None and board.server == server and not board.is_over:
            return board
        if board is not None:
            board.close()
    return None


def remove_stale_boards(folder: Path) -> None:
    """Remove this user's boards whose engine no longer runs, of whatever version. Who still has one open sees that it
    died."""
    for path in own_boards(folder):
        file = open_own(path)
        if file is not None:
            if not is_locked(file):
                path.unlink(missing_ok=True)
            os.close(file)


def own_boards(folder: Path) -> Iterator[Path]:
    """What has a board's name and this user's, whatever it is."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if board_id(entry.name) and _is_mine(entry):
                yield folder / entry.name


def _is_mine(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:  # gone meanwhile
        return False
