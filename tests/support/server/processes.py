"""Processes that are somebody else's children."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psutil


def has_ended(process: psutil.Process) -> bool:
    """Reaped or not: that is not its own affair."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for_end(*processes: psutil.Process) -> None:
    """The suite's own limit ends what hangs."""
    while not all(map(has_ended, processes)):
        time.sleep(0.01)


def shared_memory(*processes: psutil.Process) -> set[Path]:
    """The files of it that they have mapped; other servers of this machine have others."""
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in processes]
    return {Path(found) for text in maps for found in re.findall(r"/dev/shm/\S+", text)}
