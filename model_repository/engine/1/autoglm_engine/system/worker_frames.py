"""What the processes that work under limits have in common: frames on their standard input and output, and an end with
their parent. A frame is 8 bytes of length, big endian, and its content."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
from collections.abc import Iterator
from typing import Any, BinaryIO

LENGTH_BYTES = 8
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def begin_worker() -> tuple[BinaryIO, BinaryIO]:
    """(where requests come from, where answers go)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent,
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)  # also where it is stopped, or computes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return os.fdopen(0, "rb"), os.fdopen(1, "wb")


@contextlib.contextmanager
def computing_limit(seconds: float) -> Iterator[None]:
    """The kernel ends this process (SIGPROF) where the block computes for longer."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def pack_frame(content: Any) -> bytes:
    """Half of a surrogate pair, which JSON can hold, travels too."""
    return frame_of(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def frame_of(content: bytes) -> bytes:
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def unpack_frame(content: bytes) -> Any:
    return json.loads(content.decode("utf-8", "surrogatepass"))


def read_frame(stream: BinaryIO) -> bytes | None:
    """A frame's content; None at the end."""
    head = stream.read(LENGTH_BYTES)
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(head) == LENGTH_BYTES and len(content) == length else None


def write_frame(stream: BinaryIO, frame: bytes) -> None:
    stream.write(frame)
    stream.flush()
