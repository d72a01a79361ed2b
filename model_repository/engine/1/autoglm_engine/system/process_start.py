"""When a process began, which tells it from a later one of the same number.

In the kernel's own unit: psutil's seconds shift with the machine's clock, and would take a process for another one.
"""

from __future__ import annotations

from pathlib import Path

_STARTED = 19  # field 22 of /proc/PID/stat, counted behind the name; see proc_pid_stat(5)


def start_ticks(pid: int) -> int:
    """Clock ticks since the machine's start. Raises OSError where there is no such process."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[_STARTED])
