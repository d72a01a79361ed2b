"""Acknowledgements: how the engine learns that a client left, and how far the ensemble is behind.

The engine numbers its events 1, 2, 3 ... in the order in which it sends them, over all streams. The detokenizer handles
them one after the other in that same order and writes each one's number into the stream's cell of a board in shared
memory (`triton.board.file`). For a client that left, Triton calls the detokenizer no more. When an event stays
unacknowledged the engine asks the detokenizer itself, with an event of its own, the probe: it has the number sent last,
and queues behind everything sent so far. Its number in the probe's cell is the mark. So

    an event is lost  <=>  the mark has reached its number, and its cell has not.

Time plays no part in that: a slow detokenizer, however slow, never makes a healthy stream look lost. Nor do events of
other streams: whoever asks the engine directly gets events in his own hands, and may pass them on before their turn.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from autoglm_engine.core import Event
from autoglm_engine.errors import Unavailable
from autoglm_engine.messages import Ack, Packed, pack_event

from .file import NO_ARTIFACT, PROBE_CELL, Board, board_name, file_bytes
from .finder import SHARED_MEMORY, remove_stale_boards
from .seal import BOARD_ID_BYTES, KEY_BYTES, Kind, Seal
from .server_identity import ServerIdentity

_SPARE_CELLS = 1024  # a cell that was let go rests for as many streams before it is used again


def cells_for(num_slots: int, max_queue: int) -> int:
    """The probe's, and one for each stream there may be: who shares another's slot has one, too, and is bounded as the
    queue is."""
    return 1 + num_slots + 2 * max_queue + _SPARE_CELLS


class AckBoard:
    """The engine's side. The file is locked while it is in use, so that a board left behind by a killed engine is
    recognised and removed when the next one is made. `artifact`: `Manifest.short_digest` of what the engine serves.
    Raises Unavailable where shared memory has no room for it."""

    def __init__(
        self,
        num_cells: int,
        folder: Path = SHARED_MEMORY,
        server: ServerIdentity | None = None,
        artifact: str = NO_ARTIFACT,
    ) -> None:
        remove_stale_boards(folder)
        board_id = secrets.token_bytes(BOARD_ID_BYTES)
        self.num_cells = num_cells
        self._path = folder / board_name(board_id)
        unlocked = folder / f".{self._path.name}"  # under its own name it is whole, and locked, from the first moment
        file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        server, key = server or ServerIdentity.of_parent(), secrets.token_bytes(KEY_BYTES)
        try:
            self._board = Board.create(file, board_id, num_cells, server, key, artifact)
        except OSError as error:
            unlocked.unlink()
            os.close(file)
            raise Unavailable(
                f"{folder} has no {file_bytes(num_cells)} bytes for the acknowledgement board: {error.strerror}"
            ) from None
        unlocked.rename(self._path)

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def id(self) -> bytes:
        return self._board.id

    @property
    def seal(self) -> Seal:
        return self._board.seal

    @property
    def artifact(self) -> str:
        return self._board.artifact

    def note_asked(self) -> None:
        self._board.note_asked()

    @property
    def was_asked(self) -> bool:
        return self._board.was_asked

    def cancels_since(self, seen: int) -> tuple[int, set[int]]:
        return self._board.cancels_since(seen)

    def give_up_images(self, number: int) -> None:
        self._board.give_up_images(number)

    @property
    def mark(self) -> int:
        """Everything up to this number was handled. Read it before the cells that are compared with it."""
        return self._board.mark

    def number(self, cell: int) -> int:
        return self._board.number(cell)

    def give_out(self, number: int) -> None:
        self._board.give_out(number)

    def abandon(self) -> None:
        """Look as if this process had died."""
        self._board.unlock()

    def close(self) -> None:
        self._board.end()
        self._path.unlink(missing_ok=True)
        self._board.close()

    @contextmanager
    def ended_by_failure(self) -> Iterator[None]:
        """What is done with it belongs to a model's load: one that fails ends it in order, for it is nobody's death."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AckBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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

    @property
    def was_asked(self) -> bool:
        """Whether a request has come to the engine."""
        return self._board.was_asked

    def sealed(self, event: Event, ack: Ack | None, sequence_number: int = 0, *, prompt_thinks: bool = False) -> Packed:
        """The event as it goes to the detokenizer."""
        packed = pack_event(event, ack, sequence_number, self._board.artifact, prompt_thinks=prompt_thinks)
        return self._board.seal.close(Kind.EVENT, packed)

    def stamp(self, request_id: str) -> Ack:
        """The acknowledgement to ask for, right before an event is sent. `confirm` follows when it was."""
        with self._lock:
            stream = self._streams.get(request_id)
            if stream is None:
                stream = self._streams[request_id] = _Stream(self._free.popleft())
            stream.number, stream.sent, stream.suspect_since = self._next_number, False, None
            self._next_number += 1
            self._board.give_out(stream.number)
            return Ack(stream.cell, stream.number)

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
        """Whether everything that the stream sent so far was acknowledged (`stream_pacer.StreamGate`)."""
        with self._lock:
            stream = self._streams.get(request_id)
            return stream is None or self._is_acknowledged(stream)

    def lost(self) -> list[str]:
        """Streams whose client left."""
        now = self._clock()
        with self._lock:
            mark = self._board.mark
            return [request_id for request_id, stream in self._streams.items() if self._is_lost(stream, mark, now)]

    def greeting(self) -> Ack:
        """A probe about nothing."""
        return Ack(PROBE_CELL, 0)

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
            return Ack(PROBE_CELL, self._last_sent)

    def _is_acknowledged(self, stream: _Stream) -> bool:
        return self._board.number(stream.cell) >= stream.number

    def _is_lost(self, stream: _Stream, mark: int, now: float) -> bool:
        if not stream.sent or mark < stream.number or self._is_acknowledged(stream):
            stream.suspect_since = None
            return False
        if stream.suspect_since is None:
            stream.suspect_since = now
        return now - stream.suspect_since >= self.CONFIRM_SECONDS
