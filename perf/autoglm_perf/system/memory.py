"""The greatest resident memory that processes ever had. Standard library only: the peers' processes use it too.

Not `ru_maxrss`, which a process takes over from the one that started it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def peak_mb(status: str) -> float:
    """From the text of /proc/PID/status."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError("a process's status names no peak of its resident memory (VmHWM)")
    return int(found[1]) / 1024


def peak_of(processes: Iterable[int | str]) -> float:
    """MB of all of them together, by process id or `self`; pages that they share count in each."""
    return sum(peak_mb(Path(f"/proc/{process}/status").read_text()) for process in processes)
