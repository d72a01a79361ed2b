"""Which server a model's process belongs to. A process id alone says little: it is used again, and where shared memory is
the host's (`--ipc=host`) the servers of two containers can both have the id 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_STARTED = 19  # field 22 of /proc/PID/stat, counted behind the name; see proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    pid: int
    started: int  # in clock ticks since the machine's start
    namespace: int  # of process ids

    @classmethod
    def of(cls, pid: int) -> ServerIdentity:
        """Of a process in this process's own namespace. Raises OSError where there is none."""
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return cls(pid, int(fields[_STARTED]), os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - a link of /proc

    @classmethod
    def of_parent(cls) -> ServerIdentity:
        """Of the tritonserver whose model this process is."""
        return cls.of(os.getppid())
