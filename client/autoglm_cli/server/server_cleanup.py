"""What a local server leaves behind, and how it goes: processes, shared memory, the board of its engine, its folder.

Run as a program it waits for the end of the process that started it, and then removes all that. So whatever ends the
owner, nothing stays; it needs nothing but the standard library, and is run by its path.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_BOARDS = "autoglm-acks-*", ".autoglm-acks-*"  # the latter until it is whole
_BOARD_SERVER = struct.Struct("<24x3Q")  # its pid, start and namespace of pids; see `autoglm_engine.triton.board.file`
_KILL_SECONDS = 3.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ServerCleanup:
    """`regions` begins the names of the server's regions in shared memory. `server_pid` and `server_started`, in clock
    ticks since the machine began to run, are known to its engines' boards."""

    folder: Path
    regions: str
    server_pid: int = 0
    server_started: int = 0

    def remove(self) -> None:
        """All that is this user's. Whoever calls it knows that the server has ended, or is to."""
        self._kill()
        for path in self._shared():
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """tritonserver and its models' processes, but for those that ended: their command lines name the folder."""
        own = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in own if self._is_of_server(pid)]

    def _is_of_server(self, pid: int) -> bool:
        try:
            place = Path(f"/proc/{pid}")
            arguments = (place / "cmdline").read_bytes().split(b"\0")
            is_own = place.stat().st_uid == os.geteuid()
        except OSError:
            return False
        backends = os.fsencode(self.folder / "backends")
        return is_own and (arguments[0].startswith(backends + b"/") or b"--backend-directory=" + backends in arguments)

    def _kill(self) -> None:
        """Again and again, since a server may start a process meanwhile. A signal that is caught would leave it
        time."""
        give_up_at = time.monotonic() + _KILL_SECONDS
        while (found := self.processes()) and time.monotonic() < give_up_at:
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _shared(self) -> Iterator[Path]:
        yield from (path for path in SHARED_MEMORY.glob(f"{self.regions}*") if is_own_file(path))
        boards = (path for names in _BOARDS for path in SHARED_MEMORY.glob(names)) if self.server_pid else ()
        yield from (path for path in boards if self._is_board(path))

    def _is_board(self, path: Path) -> bool:
        """By whose it is, and whether or not its engine still holds it: one that was killed on a busy machine lets go
        of it seconds later."""
        if not is_own_file(path):
            return False
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        with closing(os.fdopen(file, "rb")) as board:
            head = board.read(_BOARD_SERVER.size)
        server = (self.server_pid, self.server_started, Path("/proc/self/ns/pid").stat().st_ino)
        return len(head) == _BOARD_SERVER.size and _BOARD_SERVER.unpack(head) == server


def is_own_file(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Watch:
    """The program, which outlives this process and waits for its end. One that is killed meanwhile is started anew."""

    def __init__(self, cleanup: ServerCleanup) -> None:
        server = [str(cleanup.server_pid), str(cleanup.server_started)]
        self._named = [str(os.getpid()), str(cleanup.folder), cleanup.regions, *server]
        self._lock = threading.Lock()
        self._is_closed = False
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, name="server-watch", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._process.kill()
        self._keeper.join()

    def _start(self) -> subprocess.Popen[bytes]:
        quiet, words = subprocess.DEVNULL, [sys.executable, "-IS", __file__, *self._named]
        return subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)

    def _keep(self) -> None:
        while True:
            began = time.monotonic()
            self._process.wait()
            if time.monotonic() - began < _POLL_SECONDS:  # it cannot run here: no hurry
                time.sleep(_POLL_SECONDS)
            with self._lock:
                if self._is_closed:
                    return
                self._process = self._start()


def wait_for_parent(pid: int) -> None:
    """Until this process's parent, which was `pid`, has ended."""
    try:
        file = os.pidfd_open(pid)
    except OSError:  # it has ended, or the kernel is older than 5.3
        while os.getppid() == pid:
            time.sleep(_POLL_SECONDS)
        return
    if os.getppid() == pid:  # and not another process of that number
        poll = select.poll()
        poll.register(file, select.POLLIN)
        poll.poll()
    os.close(file)


if __name__ == "__main__":
    wait_for_parent(int(sys.argv[1]))
    ServerCleanup(Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])).remove()
