"""Prompts and answers pass through memory that Triton's Python backend shares between the server and its models. It
makes these files readable to everybody, whatever the umask; here they become their owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from autoglm_engine.triton.board.finder import SHARED_MEMORY

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def close_to_others(folder: Path = SHARED_MEMORY, maps: Path = Path("/proc/self/maps")) -> None:
    """Take everybody else's rights from each file of `folder` that this process maps: at load, before there is anything
    in them. Raises OSError where that cannot be done, since prompts would lie open then."""
    for path in mapped_files(folder, maps):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(file).st_mode)
            if mode & _OTHERS:
                os.fchmod(file, mode & ~_OTHERS)
        finally:
            os.close(file)


def largest_bytes(folder: Path = SHARED_MEMORY, maps: Path = Path("/proc/self/maps")) -> int:
    """Of the files of `folder` that this process maps: at load, its model's pool. 0 where it maps none."""
    return max((path.stat().st_size for path in mapped_files(folder, maps)), default=0)


def mapped_files(folder: Path, maps: Path) -> set[Path]:
    """Those that are still there under the name they were mapped by, and that are regular files."""
    found = set()
    for row in maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, _, _, _, inode, *name = row.split(maxsplit=5)
        if name and (path := Path(name[0])).parent == folder and _is(path, int(inode)):
            found.add(path)
    return found


def _is(path: Path, inode: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_ino == inode
