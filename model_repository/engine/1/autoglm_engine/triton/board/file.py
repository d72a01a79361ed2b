"""The acknowledgement board as a file of shared memory: what an engine, its tokenizer and its detokenizer have in
common, and nobody else can open.

Board: a file of uint64 [64 + num_cells], little-endian, of mode 0600.

    word 0        `MAGIC`
    word 1        the highest number that the engine gave out
    word 2        1 once the engine ended in order
    words 3-5     the server: `ServerIdentity`
    words 6-9     the key of the messages between the models: `seal`
    word 10       the engine: `ServerIdentity.engine`
    word 11       the artifact that the engine serves: `Manifest.short_digest`
    word 12       1 once the engine was asked, 2 once another engine of that name was asked in its place
    word 13       how many cancels another engine, which is asked in its place, passed on to this one
    word 14       the vision model may end its work on images up to this number: nobody wants them any more
    word 15       zero
    words 16-63   the last of those cancels, in turn: `Seal.tag_of` of the request's id
    words 64 ...  the cells; cell 0 is the probe's

The engine's process holds a lock on the file for as long as it lives. A cell's number only grows.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.messages import Ack
from autoglm_engine.system.own_files import open_own

from .seal import BOARD_ID_BYTES, KEY_BYTES, Seal
from .server_identity import ServerIdentity

MAGIC = 0x3330_4B43_414D_4C47
PREFIX = "autoglm-acks-"
PROBE_CELL = 0
NO_ARTIFACT = "0" * 16
_NAME = re.compile(re.escape(PREFIX) + f"([0-9a-f]{{{2 * BOARD_ID_BYTES}}})")
_HEADER = 64
_SENT, _ENDED, _SERVER, _KEY, _ENGINE, _ARTIFACT, _DUTY, _NUM_CANCELS, _GIVEN_UP, _CANCELS = (
    1,
    2,
    3,
    6,
    10,
    11,
    12,
    13,
    14,
    16,
)
MAX_CANCELS = _HEADER - _CANCELS
_IS_ASKED, _IS_SUPERSEDED = 1, 2

Words = npt.NDArray[np.uint64]


class Board:
    """An open board. `board_id`: 8 bytes, from its name."""

    def __init__(self, board_id: bytes, file: int, words: Words) -> None:
        self.id = board_id
        self._file = file
        self._words = words
        self.artifact = f"{int(words[_ARTIFACT]):016x}"
        self.num_cells = len(words) - _HEADER
        self.seal = Seal(board_id, words[_KEY:][: KEY_BYTES // 8].tobytes())

    @classmethod
    def create(
        cls, file: int, board_id: bytes, num_cells: int, server: ServerIdentity, key: bytes, artifact: str = NO_ARTIFACT
    ) -> Board:
        """Write an empty one into a new file. All of its memory is taken here: where there is none, this raises
        OSError, and no later touch of a page ends a process (SIGBUS)."""
        os.posix_fallocate(file, 0, file_bytes(num_cells))
        words = _map_words(file)
        words[_SERVER:_KEY] = server.pid, server.started, server.namespace
        words[_ENGINE] = server.engine
        words[_KEY:][: KEY_BYTES // 8] = np.frombuffer(key, dtype=np.uint64)
        words[_ARTIFACT] = int(artifact, 16)
        words[0] = MAGIC
        return cls(board_id, file, words)

    @classmethod
    def open(cls, path: Path) -> Board | None:
        """None for what is gone, is not this user's own, or is no board of this layout."""
        name = board_id(path.name)
        file = open_own(path) if name else None
        if name is None or file is None:
            return None
        size = os.fstat(file).st_size
        if size > 8 * _HEADER and size % 8 == 0:
            words = _map_words(file)
            if words[0] == MAGIC:
                return cls(name, file, words)
        os.close(file)
        return None

    @property
    def server(self) -> ServerIdentity:
        return ServerIdentity(*map(int, [*self._words[_SERVER:_KEY], self._words[_ENGINE]]))

    # ---- the engine's side

    @property
    def mark(self) -> int:
        """Everything up to this number was handled. Read it before the cells that are compared with it."""
        return self.number(PROBE_CELL)

    def number(self, cell: int) -> int:
        return int(self._words[_HEADER + cell])

    def give_out(self, number: int) -> None:
        """Before an event of that number is sent."""
        self._words[_SENT] = number

    def note_asked(self) -> None:
        """The engine is the one that Triton sends requests to, unless it was that before."""
        if not self._words[_DUTY]:
            self._words[_DUTY] = _IS_ASKED

    def supersede(self) -> None:
        """Said by a later engine of the same server, once that is asked."""
        self._words[_DUTY] = _IS_SUPERSEDED

    def cancels_since(self, seen: int) -> tuple[int, set[int]]:
        """How many cancels were passed on to this engine until now, and the tags of those after the first `seen`; of
        more than `MAX_CANCELS` since then, the last."""
        number = int(self._words[_NUM_CANCELS])
        first = max(seen, number - MAX_CANCELS)
        return number, {int(self._words[_CANCELS + place % MAX_CANCELS]) for place in range(first, number)}

    def give_up_images(self, number: int) -> None:
        """All up to this number."""
        self._words[_GIVEN_UP] = number

    def unlock(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def end(self) -> None:
        """In order: from here on its being unlocked is no death."""
        self._words[_ENDED] = 1

    # ---- the side of an engine that is asked in this one's place

    def forward_cancels(self, caller_ids: Iterable[str]) -> None:
        for caller_id in caller_ids:
            number = int(self._words[_NUM_CANCELS])
            self._words[_CANCELS + number % MAX_CANCELS] = self.seal.tag_of(caller_id)
            self._words[_NUM_CANCELS] = number + 1

    # ---- the other models' side

    def acknowledge(self, ack: Ack) -> None:
        """Raises InvalidRequest for what the engine did not ask for."""
        sent = int(self._words[_SENT])
        if not (0 <= ack.cell < self.num_cells and 0 <= ack.number <= sent):
            raise InvalidRequest(
                f"event asks for number {ack.number} in cell {ack.cell}; "
                f"its board has the cells 0 to {self.num_cells - 1}, and numbers up to {sent} were sent"
            )
        cell = _HEADER + ack.cell
        self._words[cell] = max(int(self._words[cell]), ack.number)

    def is_wanted(self, image: int) -> bool:
        """By its number."""
        return image > int(self._words[_GIVEN_UP]) and not self.has_ended

    @property
    def has_ended(self) -> bool:
        return bool(self._words[_ENDED])

    @property
    def was_asked(self) -> bool:
        return bool(self._words[_DUTY])

    @property
    def is_asked(self) -> bool:
        return bool(self._words[_DUTY] == _IS_ASKED)

    @property
    def is_over(self) -> bool:
        """Its engine ended, or another one is asked in its place, or it was removed in favour of another engine's."""
        return self.has_ended or bool(self._words[_DUTY] == _IS_SUPERSEDED) or os.fstat(self._file).st_nlink == 0

    @property
    def is_abandoned(self) -> bool:
        """Its engine's process died: it holds no lock any more, and never said that it ends."""
        return not is_locked(self._file) and not self.has_ended

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def file_bytes(num_cells: int) -> int:
    return 8 * (_HEADER + num_cells)


def board_name(board_id: bytes) -> str:
    return PREFIX + board_id.hex()


def board_id(name: str) -> bytes | None:
    """None where it is no board's name."""
    match = _NAME.fullmatch(name)
    return bytes.fromhex(match[1]) if match else None


def is_locked(file: int) -> bool:
    """Whether the process of its engine lives."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not take each other for the engine
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _map_words(file: int) -> Words:
    assert sys.byteorder == "little", "the board is little-endian"
    return np.frombuffer(mmap.mmap(file, 0), dtype=np.uint64)
