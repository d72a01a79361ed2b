"""A server under measurement: where it is asked, and what its processes use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Served:
    """`pids`: of the processes that it was started as."""

    url: str
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Of these and their descendants that run now, since each began."""
        families = [psutil.Process(pid) for pid in self.pids]
        families += [child for process in families for child in process.children(recursive=True)]
        return sum(_cpu_seconds(process) for process in families)


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
