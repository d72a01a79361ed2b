"""Which files of a folder that everybody may write to can be believed: what this user made, and nobody else may open.

Another user can put anything there under any name: a file that is cut while it is mapped (SIGBUS), a pipe, a link.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def open_own(path: Path) -> int | None:
    """A file descriptor for reading and writing; None for what is not there, not a regular file, another user's, or
    open to others."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if is_own(os.fstat(file)):
        return file
    os.close(file)
    return None


def is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
