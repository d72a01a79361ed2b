"""What processes use of the machine: CPU and memory of a server and its models, and of the load generator beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from autoglm_cli.procfs import ProcFs
from autoglm_cli.profile.host import server_processes
from autoglm_cli.server.local_server import LocalServer

MEBIBYTE = 1 << 20
LOAD_GENERATOR = "load generator"
_PERIOD_SECONDS = 0.25


def processes_of(server: LocalServer) -> dict[str, int]:
    """Process ids by name: tritonserver and its models."""
    assert server.pid is not None, "the server runs"
    return server_processes(ProcFs(), server.pid)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `resident` counts pages that processes share in each of them, `proportional` (PSS) once altogether; of it
    `allocated` is no file's: other programs that map the same libraries do not change it."""

    resident: int
    proportional: int
    allocated: int


def read_memory(pid: int, root: Path = Path("/proc")) -> Memory:
    """Zeros for a process that is gone. psutil does not tell the memory of files from the other."""
    try:
        rows = (root / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return Memory(0, 0, 0)
    fields = (row.split() for row in rows[1:])
    sizes = {columns[0]: 1024 * int(columns[1]) for columns in fields}
    allocated = sizes.get("Pss_Anon:", 0) + sizes.get("Pss_Shmem:", 0)
    return Memory(sizes.get("Rss:", 0), sizes.get("Pss:", 0), allocated)


class PeakMemory:
    """The largest sum over `pids`, sampled four times a second while it is entered."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = tuple(pids.values())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)
        self.proportional = 0
        self.resident = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        self._look()
        while not self._done.wait(_PERIOD_SECONDS):
            self._look()

    def _look(self) -> None:
        found = [read_memory(pid) for pid in self._pids]
        self.proportional = max(self.proportional, sum(memory.proportional for memory in found))
        self.resident = max(self.resident, sum(memory.resident for memory in found))


@dataclass(slots=True)
class CpuUse:
    """CPU seconds by process over a stretch of time, the load generator's among them. `others`: of all other programs,
    as a share of what the machine could have given; None where it cannot be seen."""

    used: Mapping[str, float] | None = None
    others: float | None = None

    def line(self, num_requests: int) -> str:
        """`CPU a request: ...` in milliseconds, and what share of the cores the load generator took."""
        assert self.used is not None, "the stretch has ended"
        each = ", ".join(f"{name} {1e3 * used / num_requests:.2f}" for name, used in self.used.items())
        share = self.used[LOAD_GENERATOR] / max(sum(self.used.values()), 1e-9)
        return f"CPU a request in ms: {each}; the load generator takes {share:.0%} of it."


@contextmanager
def cpu_use(server: LocalServer) -> Iterator[CpuUse]:
    """Filled when it is left. Programs that this process started and that have ended count as load generator."""
    pids, proc, use = processes_of(server), ProcFs(), CpuUse()
    before, mine = {name: proc.cpu_seconds(pid) or 0.0 for name, pid in pids.items()}, _own_seconds()
    machine, began = proc.machine_cpu_seconds(), time.monotonic()
    yield use
    spent = {name: (proc.cpu_seconds(pid) or 0.0) - before[name] for name, pid in pids.items()}
    use.used = {**spent, LOAD_GENERATOR: _own_seconds() - mine}
    if machine is not None and (now := proc.machine_cpu_seconds()) is not None:
        possible = (os.cpu_count() or 1) * (time.monotonic() - began)
        use.others = max(0.0, now - machine - sum(use.used.values())) / possible


def busiest_threads(pid: int, count: int, *, seconds: float = 0.3) -> list[int]:
    """The ids of the `count` threads of a process that use the most CPU over the next `seconds`."""
    before = _thread_seconds(pid)
    time.sleep(seconds)
    used = {thread: now - before.get(thread, 0.0) for thread, now in _thread_seconds(pid).items()}
    return sorted(used, key=lambda thread: -used[thread])[:count]


def run_queue_seconds(pids: Iterable[int], without: Container[int] = ()) -> float:
    """How long all threads of the processes but `without` have been ready to run and waited for a core. Threads that
    have ended, or whose kernel counts no such time, add nothing. psutil does not know it."""
    return sum(
        _waited(folder)
        for pid in pids
        for folder in Path(f"/proc/{pid}/task").glob("*")
        if int(folder.name) not in without
    )


def _waited(thread: Path) -> float:
    try:
        return int((thread / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _thread_seconds(pid: int) -> dict[int, float]:
    """CPU seconds by thread, user and system."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def _own_seconds() -> float:
    """Of this process and of those of its children that have ended and were waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
