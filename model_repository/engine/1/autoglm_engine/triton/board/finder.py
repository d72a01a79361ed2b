"""Finding the boards of a model's own engine in shared memory, between everything else that lies there."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Protocol

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import Unavailable
from autoglm_engine.messages import Ack, Packed
from autoglm_engine.system.own_files import open_own

from .file import Board, board_id, board_name, is_locked
from .seal import BOARD_ID_BYTES, Kind, Seal, board_id_of, forged
from .server_identity import ServerIdentity

SHARED_MEMORY = Path("/dev/shm")
_MAX_OPEN_BOARDS = 4  # an engine that was loaded again has a new board; the old one's memory is let go


class EngineBoard:
    """The tokenizer's side: the board of the engine that Triton sends requests to. Thread-safe."""

    def __init__(self, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._server = server
        self._folder = folder
        self._lock = threading.Lock()
        self._board: Board | None = None

    def current(self) -> Board:
        """Raises Unavailable where no engine is loaded."""
        with self._lock:
            return self._current()

    def _current(self) -> Board:
        if self._board is not None and self._board.is_over:
            self._board.close()
            self._board = None
        if self._board is None:
            self._board = find_board(self._folder, self._server)
        if self._board is None:
            raise Unavailable("the engine is not loaded; try again later")
        return self._board


class EventBoards:
    """The detokenizer's side: opens events that its own engine sealed."""

    def __init__(self, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._boards = OpenBoards(server, Kind.EVENT, folder)

    def open(self, sealed: Packed) -> tuple[Packed, Callable[[Ack], None]]:
        """The event, and how it is acknowledged. Raises InvalidRequest for what that engine did not write."""
        board = self._boards.of(sealed)
        return board.seal.open(Kind.EVENT, sealed), board.acknowledge


class ImageBoards:
    """The vision model's side: opens what its own engine asks."""

    def __init__(self, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._boards = OpenBoards(server, Kind.IMAGE, folder)

    def open(self, sealed: Packed, image: Packed) -> tuple[Packed, Callable[[int], bool]]:
        """What is asked of this image, and whether the one of a number is still wanted. Raises InvalidRequest for what
        that engine did not write."""
        board = self._boards.of(sealed)
        return board.seal.open(Kind.IMAGE, sealed, beside=image), board.is_wanted


class RequestBoards:
    """The engine's side. While it is loaded in place of another one, the tokenizer seals with the other's key for a
    moment, and a request that began before goes to the other with this one's: each opens what any of them sealed.

    Made once the engine's own board, `own`, is there."""

    def __init__(self, own: OwnBoard, server: ServerIdentity, folder: Path = SHARED_MEMORY) -> None:
        self._own = own
        self._boards = OpenBoards(server, Kind.REQUEST, folder)
        self._folder = folder
        self._server = server
        self._elders = [board for board in boards_of(folder, server) if board.id != own.id]
        self._boards.keep(self._elders)
        self._has_elders = bool(self._elders)

    def open(self, sealed: Packed, token_ids: TokenIds) -> Packed:
        """Raises InvalidRequest for what the tokenizer of this server did not write."""
        seal = self._own.seal if board_id_of(sealed) == self._own.id else self._boards.of(sealed).seal
        return seal.open(Kind.REQUEST, sealed, beside=token_ids)

    def note_asked(self) -> None:
        """Triton sends requests to this engine, and to no elder one any more."""
        self._own.note_asked()
        for elder in self._elders:
            elder.supersede()
        self._elders.clear()

    def forward_cancels(self, caller_ids: Several[str]) -> bool:
        """To engines of this server that still run what they began before this one was loaded: Triton asks them no
        more. Whether there are any."""
        if not self._has_elders:
            return False
        boards = [board for board in boards_of(self._folder, self._server) if board.id != self._own.id]
        running = [board for board in boards if not board.has_ended and not board.is_abandoned]
        for board in running:
            board.forward_cancels(caller_ids)
        for board in boards:
            board.close()
        self._has_elders = bool(running)
        return self._has_elders


class OwnBoard(Protocol):
    @property
    def id(self) -> bytes: ...

    @property
    def seal(self) -> Seal: ...

    def note_asked(self) -> None: ...


class OpenBoards:
    """The boards of a server that its messages name; the last few stay open."""

    def __init__(self, server: ServerIdentity, kind: Kind, folder: Path) -> None:
        self._server = server
        self._kind = kind
        self._folder = folder
        self._boards: OrderedDict[bytes, Board] = OrderedDict()

    def of(self, sealed: Packed) -> Board:
        """Raises InvalidRequest where no engine of this server has it."""
        wanted = board_id_of(sealed)  # which is opened only if it is this user's own: `own_files`
        if wanted in self._boards:
            return self._boards[wanted]
        board = Board.open(self._folder / board_name(wanted)) if len(wanted) == BOARD_ID_BYTES else None
        if board is None or board.server != self._server:
            if board is not None:
                board.close()
            raise forged(self._kind)
        self.keep([board])
        return board

    def keep(self, boards: Iterable[Board]) -> None:
        self._boards |= {board.id: board for board in boards}
        while len(self._boards) > _MAX_OPEN_BOARDS:
            self._boards.popitem(last=False)[1].close()


def find_board(folder: Path, server: ServerIdentity) -> Board | None:
    """The board of that server's engine, of the one that is meant and asked, else of one that may come to be."""
    found = sorted(boards_of(folder, server), key=lambda board: board.is_asked)
    chosen = next((board for board in reversed(found) if not board.is_over), None)
    for board in found:
        if board is not chosen:
            board.close()
    return chosen


def served_artifact(server: ServerIdentity, folder: Path = SHARED_MEMORY) -> str | None:
    """Of the engine that is asked; None where there is none, or nobody asked it yet."""
    board = find_board(folder, server)
    if board is None:
        return None
    artifact = board.artifact if board.is_asked else None
    board.close()
    return artifact


def boards_of(folder: Path, server: ServerIdentity) -> Iterator[Board]:
    """All boards of this server's engines, of whatever state; who takes one closes it."""
    for path in own_boards(folder):
        board = Board.open(path)
        if board is not None and board.server == server:
            yield board
        elif board is not None:
            board.close()


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
