"""The folder of a local server in the temporary directory, and the sweeping of those whose owners were killed.

Its file `owner` says who made it, and is locked by that process as long as it lives.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autoglm_cli.procfs import ProcFs

from .server_cleanup import ServerCleanup, try_lock

_PREFIX = "autoglm-server-"
_OWNER = "owner"
_REGIONS = re.compile("autoglm-[0-9a-f]{16}-")
_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Process:
    """`started`: clock ticks since the machine began to run, which tell it from a later process of the same number."""

    pid: int
    started: int

    @staticmethod
    def of(pid: int) -> Process | None:
        """None where it has ended, reaped or not."""
        started = ProcFs().start_ticks(pid)
        return None if started is None else Process(pid, started)

    @property
    def is_alive(self) -> bool:
        return Process.of(self.pid) == self


class ServerFolder:
    """Made for this process. `regions`: see `server_cleanup`."""

    def __init__(self, regions: str) -> None:
        owner = Process.of(os.getpid())
        assert owner is not None, "this process runs"
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.regions = regions
        self._file = os.open(self.path / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try_lock(self._file)  # before it says anything: what is empty is left alone
        os.write(self._file, json.dumps({"pid": owner.pid, "started": owner.started, "regions": regions}).encode())

    def cleanup(self, server: Process | None = None) -> ServerCleanup:
        return ServerCleanup(self.path, self.regions, *((server.pid, server.started) if server else ()))

    def remove(self, server: Process | None = None) -> None:
        self.cleanup(server).remove()
        os.close(self._file)


def sweep(parent: Path | None = None) -> list[Path]:
    """Remove what servers left whose owners have ended, of this user and in this temporary directory; their folders."""
    folders = sorted((parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*"))
    return [folder for folder in folders if _swept(folder)]


def _swept(folder: Path) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError):  # another user's, not ours at all, or gone meanwhile
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        file = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return try_lock(file) and _removed(folder, json.loads(os.read(file, _MAX_BYTES)))
        finally:
            os.close(file)
    return False


def _removed(folder: Path, owner: dict[str, object]) -> bool:
    """A lock alone would not do: there are file systems without any. Nor would a number: containers count for
    themselves."""
    pid, started, regions = int(str(owner["pid"])), int(str(owner["started"])), str(owner["regions"])
    if Process(pid, started).is_alive or not _REGIONS.fullmatch(regions):
        return False
    ServerCleanup(folder, regions).remove()
    return True
