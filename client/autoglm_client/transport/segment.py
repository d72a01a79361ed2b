"""A piece of shared memory that a server on this host reads large inputs from. Knows nothing of requests.

It is a file of /dev/shm, locked while its process lives, so that those of killed processes are recognised and removed.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)
FOLDER = Path("/dev/shm")
_PREFIX = "autoglm-inputs-"
_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Block:
    offset: int
    size: int  # bytes, rounded up to whole pages


class Segment:
    """`size` bytes at most; memory is taken with first use and kept until `close`, or until the process ends. It is
    taken before it is written to, so that a full `folder` shows as a block that cannot be had, and not as the end of
    the process (SIGBUS).

    Raises OSError where this system has no such memory.
    """

    def __init__(self, size: int, folder: Path = FOLDER) -> None:
        self.name = _PREFIX + secrets.token_hex(8)
        self.size = size
        self._free = [Block(0, size)]  # by offset, never two side by side
        unlocked = folder / f".{self.name}"  # under its own name it is locked from the first moment on
        file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.ftruncate(file, size)
        self._file = file
        self._is_told = False
        self._num_taken = 0  # bytes from the beginning on that there is memory for
        self._memory = mmap.mmap(file, size)
        unlocked.rename(folder / self.name)
        self._finalizer = weakref.finalize(self, _remove, folder / self.name, file, os.getpid())

    def put(self, content: bytes) -> Block | None:
        """A block that begins with `content`; None where there is no room."""
        wanted = -(-max(len(content), 1) // _ALIGNMENT) * _ALIGNMENT
        for place, free in enumerate(self._free):
            if free.size >= wanted:
                if not self._take(free.offset + wanted):
                    return None
                rest = Block(free.offset + wanted, free.size - wanted)
                self._free[place : place + 1] = [rest] if rest.size else []
                self._memory[free.offset : free.offset + len(content)] = content
                return Block(free.offset, wanted)
        return None

    def _take(self, end: int) -> bool:
        """Whether there is memory for the bytes before `end`."""
        if end <= self._num_taken:
            return True
        try:
            os.posix_fallocate(self._file, self._num_taken, end - self._num_taken)
        except OSError as error:
            if not self._is_told:
                _log.warning("shared memory has no room, large inputs are sent: %s", error.strerror)
            self._is_told = True
            return False
        self._num_taken = end
        return True

    def release(self, block: Block) -> None:
        self._free.append(block)
        self._free.sort(key=lambda free: free.offset)
        joined: list[Block] = []
        for free in self._free:
            if joined and joined[-1].offset + joined[-1].size == free.offset:
                joined[-1] = Block(joined[-1].offset, joined[-1].size + free.size)
            else:
                joined.append(free)
        self._free = joined

    @property
    def num_free(self) -> int:
        """Bytes."""
        return sum(block.size for block in self._free)

    def close(self) -> None:
        """Remove it; a server that has it open keeps the memory until it lets go."""
        self._finalizer()


def remove_stale(folder: Path = FOLDER) -> list[str]:
    """Remove what killed processes of this user left behind; the names."""
    return [path.name for path in sorted(folder.glob(f"{_PREFIX}*")) if _remove_if_unlocked(path)]


def _remove_if_unlocked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # gone, another user's, or a link
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False  # root can open it; that does not make it ours
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def _remove(path: Path, file: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child's end is not its parent's
        path.unlink(missing_ok=True)
    os.close(file)
