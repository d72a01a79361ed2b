"""What a model logs goes into Triton's own log: its levels, its format, its file, one line a record.

Triton's logger hands a line to the server through the model's message queue, and a call waits, holding Python's lock,
where the line before is still on its way. So records go through a bounded queue to a thread of their own, which leaves
the server time after each; what does not fit is dropped and counted. Nothing here raises into the code that logs.

A line never has a prompt's text: of an exception it says where it was raised, and its words only where they quote
nothing.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from autoglm_engine.errors import EngineError

from .printable import one_line

_PACKAGE = "autoglm_engine"
_MAX_WAITING = 1000
_MAX_CHARACTERS = 4000  # of a line
_MAX_FRAMES = 12  # the innermost ones
_PAUSE_SECONDS = 0.005  # after a line: 200 a second at most
_CLOSE_SECONDS = 1.0
_QUOTING = (ValueError, LookupError)  # their words often are the value that was wrong


class TritonLogger(Protocol):
    """`pb_utils.Logger`."""

    def log_verbose(self, message: str) -> object: ...

    def log_info(self, message: str) -> object: ...

    def log_warn(self, message: str) -> object: ...

    def log_error(self, message: str) -> object: ...


class TritonLog(logging.Handler):
    """A record's `request_id` (`extra={"request_id": ...}`) stands in the line as in Triton's own. `num_dropped`:
    records that found no place."""

    def __init__(self, triton: TritonLogger, max_waiting: int = _MAX_WAITING, pause: float = _PAUSE_SECONDS) -> None:
        super().__init__()
        self._triton = triton
        self._pause = pause
        self._lines: queue.Queue[tuple[int, str] | None] = queue.Queue(max_waiting)
        self._count_lock = threading.Lock()
        self.num_dropped = 0
        self._num_told = 0  # of those dropped
        self._thread = threading.Thread(target=self._write_all, name="triton-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait((record.levelno, line_of(record)))
        except Exception:  # full, or a record that cannot be told
            self._drop()

    def close(self) -> None:
        """What waits is written, for a second at most."""
        try:
            self._lines.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)
        except queue.Full:
            pass
        super().close()

    def _write_all(self) -> None:
        while (entry := self._lines.get()) is not None:
            if not self._write(*entry):
                self._drop()
            if self._lines.empty():
                self._tell_dropped()
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        count = self.num_dropped - self._num_told
        line = f"triton_log: {count} lines were dropped, since the log did not take them in time"
        if count and self._write(logging.WARNING, line):
            self._num_told += count

    def _write(self, level: int, line: str) -> bool:
        """Whether Triton took it: there is nowhere else to say it."""
        try:
            self._writer(level)(line)
        except Exception:
            return False
        time.sleep(self._pause)
        return True

    def _drop(self) -> None:
        with self._count_lock:
            self.num_dropped += 1

    def _writer(self, level: int) -> Callable[[str], object]:
        if level >= logging.ERROR:
            return self._triton.log_error
        if level >= logging.WARNING:
            return self._triton.log_warn
        return self._triton.log_info if level >= logging.INFO else self._triton.log_verbose


def log_to_triton(triton: TritonLogger) -> TritonLog:
    """All logging of this process: of this package from INFO on, of others from WARNING on, Python's warnings too."""
    handler = TritonLog(triton)
    logging.getLogger().addHandler(handler)
    logging.getLogger(_PACKAGE).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    atexit.register(handler.close)
    return handler


def line_of(record: logging.LogRecord) -> str:
    request_id = getattr(record, "request_id", "")
    named = f"[request id: {request_id}] " if request_id else ""
    error = record.exc_info[1] if record.exc_info else None
    raised = f": {raised_where(error)}" if error is not None else ""
    line = one_line(f"{named}{record.name.removeprefix(f'{_PACKAGE}.')}: {record.getMessage()}{raised}")
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} ... ({len(line)} characters)"


def raised_where(error: BaseException) -> str:
    """Kind, words and place of an exception, and of what it came from; the innermost place first."""
    told = list[str]()
    current: BaseException | None = error
    while current is not None and len(told) < _MAX_FRAMES:
        told.append(_told(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "; it came from ".join(told)


def _told(error: BaseException) -> str:
    words = str(error) if isinstance(error, EngineError) or not isinstance(error, _QUOTING) else ""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
    at = f" at {' < '.join(places)}" if places else ""
    return f"{type(error).__name__}{f': {words}' if words else ''}{at}"
