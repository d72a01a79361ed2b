"""Acknowledgements: how the engine learns that a client left, and how far the ensemble is behind.

The engine numbers its events 1, 2, 3 ... in the order in which it sends them, over all streams. The detokenizer handles
them one after the other in that same order and writes each one's number into the stream's cell of a board in shared
memory, then into the board's mark. For a client that left, Triton calls the detokenizer no more. So

    an event is lost  <=>  the mark has reached its number, and its cell has not.

Time plays no part in that: a slow detokenizer, however slow, never makes a healthy stream look lost. Where no later
event moves the mark, the engine asks the detokenizer itself to (`AckGate.probe`).

Board: a file of uint64 [8 + num_cells], little-endian. Word 0: `MAGIC`; word 1: the mark; word 2: the process id
of the server; words 3-7: zero; then the cells.
Cell 0 is the probe's. A cell's number only grows, so a late write from its former stream changes nothing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from .errors import InvalidRequest
from .wire import Ack

MAGIC = 0x3130_4B43_414D_4C47
SHARED_MEMORY = Path("/dev/shm")
PROBE_CELL = 0
_PREFIX = "autoglm-acks-"
_ID = re.compile(re.escape(_PREFIX) + "[0-9a-f]{16}")
_HEADER = 8
_MARK = 1
_SERVER = 2
_MAX_OPEN_BOARDS = 4  # a restarted engine has a new board; the old one's memory is let go

Words = npt.NDArray[np.uint64]


class AckBoard:
    """The engine's side. The file is locked while it is in use, so that a board left behind by a killed engine is
    recognised and removed when the next one is made."""

    def __init__(self, num_cells: int, folder: Path = SHARED_MEMORY) -> None:
        remove_stale_boards(folder)
        self.id = _PREFIX + secrets.token_hex(8)
        self.num_cells = num_cells
        self._path = folder / self.id
        unlocked = folder / f".{self.id}"  # under its own name it is locked from the first moment on
        self._file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        size = 8 * (_HEADER + num_cells)
        os.ftruncate(self._file, size)
        self._words = _map_words(self._file, size)
        self._words[0], self._words[_SERVER] = MAGIC, os.getppid()
        unlocked.rename(self._path)

    @property
    def mark(self) -> int:
        """The highest number handled so far. Read it before the cells that are compared with it."""
        return int(self._words[_MARK])

    def number(self, cell: int) -> int:
        return int(self._words[_HEADER + cell])

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> AckBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AckWriter:
    """The detokenizer's side: opens the board that an event names and writes its number."""

    def __init__(self, folder: Path = SHARED_MEMORY) -> None:
        self._folder = folder
        self._boards: OrderedDict[str, Words | None] = OrderedDict()

    def write(self, ack: Ack) -> None:
        """Raises InvalidRequest for what no engine wrote. A board that is gone (its engine ended) is passed over."""
        words = self._board(ack.board)
        if words is None:
            return
        cell = _HEADER + ack.cell
        if not (_HEADER <= cell < len(words) and 0 < ack.number < 2**63):
            raise InvalidRequest(f"event names cell {ack.cell} and number {ack.number}, which its board does not have")
        for word in (cell, _MARK):  # the mark last: see the reader
            words[word] = max(int(words[word]), ack.number)

    def _board(self, board: str) -> Words | None:
        if board not in self._boards:
            self._boards[board] = open_board(self._folder, board)
            while len(self._boards) > _MAX_OPEN_BOARDS:
                self._boards.popitem(last=False)
        return self._boards[board]


@dataclass(slots=True)
class _Stream:
    cell: int
    number: int = 0  # of its last event; 0: none yet
    sent: bool = True  # the sending of that event has returned
    sent_at: float = 0.0
    suspect_since: float | None = None


class AckGate:
    """The engine's book of streams: which may send their next event, and which were lost.

    Thread-safe: the step thread asks, the sender thread stamps and confirms. Streams appear with their first event.
    """

    CONFIRM_SECONDS = 0.02  # a lost event must stay so, since memory order between processes is the machine's affair
    PROBE_SECONDS = 0.15  # an event unacknowledged for so long is asked about

    def __init__(self, board: AckBoard, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._free = deque(range(PROBE_CELL + 1, board.num_cells))
        self._next_number = 1
        self._last_sent = 0
        self._last_probe = 0.0

    def stamp(self, request_id: str) -> Ack:
        """The acknowledgement to ask for, right before an event is sent. `confirm` follows when it was."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                stream = self._streams[request_id] = _Stream(self._free.popleft())
            stream.number, stream.sent, stream.suspect_since = self._next_number, False, None
            self._next_number += 1
            return Ack(self._board.id, stream.cell, stream.number)

    def confirm(self, request_id: str) -> None:
        """The event last stamped has been handed to Triton, behind all earlier ones."""
        with self._lock:
            if stream := self._streams.get(request_id):
                stream.sent, stream.sent_at = True, self._clock()
                self._last_sent = max(self._last_sent, stream.number)

    def end(self, request_id: str) -> None:
        """The stream sent its last event. Its cell goes to the end of the line."""
        with self._lock:
            if stream := self._streams.pop(request_id, None):
                self._free.append(stream.cell)

    def may_send(self, request_id: str, now: float) -> bool:
        """Whether everything that the stream sent so far was acknowledged (`gate.StreamGate`)."""
        with self._lock:
            stream = self._streams.get(request_id)
            return stream is None or self._is_acknowledged(stream)

    def lost(self) -> list[str]:
        """Streams whose client left."""
        now = self._clock()
        with self._lock:
            mark = self._board.mark
            return [request_id for request_id, stream in self._streams.items() if self._is_lost(stream, mark, now)]

    def probe(self) -> Ack | None:
        """What to have the detokenizer acknowledge, when an event has waited long enough to ask; else None.

        Ask from a thread that may block. The number is that of the last event handed over, so everything up to it was
        handled once the probe was.
        """
        now = self._clock()
        with self._lock:
            if now - self._last_probe < self.PROBE_SECONDS or not any(
                stream.sent and now - stream.sent_at > self.PROBE_SECONDS and not self._is_acknowledged(stream)
                for stream in self._streams.values()
            ):
                return None
            self._last_probe = now
            return Ack(self._board.id, PROBE_CELL, self._last_sent)

    def _is_acknowledged(self, stream: _Stream) -> bool:
        return self._board.number(stream.cell) >= stream.number

    def _is_lost(self, stream: _Stream, mark: int, now: float) -> bool:
        if not stream.sent or mark < stream.number or self._is_acknowledged(stream):
            stream.suspect_since = None
            return False
        if stream.suspect_since is None:
            stream.suspect_since = now
        return now - stream.suspect_since >= self.CONFIRM_SECONDS


def open_board(folder: Path, board: str) -> Words | None:
    """Map an existing board. None when it is gone; InvalidRequest when the name or the file is no board's."""
    if not _ID.fullmatch(board):
        raise InvalidRequest(f"event names the board {board[:40]!r}, which is not one of an engine's")
    try:
        file = os.open(folder / board, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        words = _map_words(file, os.fstat(file).st_size)
    finally:
        os.close(file)
    if words[0] != MAGIC:
        raise InvalidRequest(f"event names the board {board}, which has another version's layout")
    return words


def find_board(folder: Path, server_pid: int) -> Path | None:
    """The board of the engine that is a child of this process."""
    for path in folder.glob(f"{_PREFIX}*"):
        words = open_board(folder, path.name) if _ID.fullmatch(path.name) else None
        if words is not None and int(words[_SERVER]) == server_pid:
            return path
    return None


def is_abandoned(board: Path) -> bool:
    """Whether the board's engine ended without removing it: nobody holds its lock."""
    try:
        file = os.open(board, os.O_RDWR)
    except OSError:
        return False  # gone, or another user's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return board.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def remove_stale_boards(folder: Path) -> None:
    """Remove the boards whose engine no longer runs."""
    for path in folder.glob(f"{_PREFIX}*"):
        if is_abandoned(path):
            path.unlink(missing_ok=True)


def _map_words(file: int, size: int) -> Words:
    assert sys.byteorder == "little", "the board is little-endian"
    return np.frombuffer(mmap.mmap(file, size), dtype=np.uint64)
