"""Reads Linux's /proc and /sys. Every figure is None where the kernel, the container or the rights do not give it.

Not psutil: a client, and a gateway, are installed without it, and it knows neither the limits of containers nor routes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a huge number of bytes


class ProcFs:
    """`root` is / but in tests."""

    def __init__(self, root: Path = Path("/"), *, ticks_per_second: int = 0) -> None:
        self._root = root
        self._ticks_per_second = ticks_per_second or os.sysconf("SC_CLK_TCK")

    def cpu_seconds(self, pid: int) -> float | None:
        """Used by the process, user and system."""
        fields = self._stat(pid)
        return (int(fields[11]) + int(fields[12])) / self._ticks_per_second if fields else None

    def start_ticks(self, pid: int) -> int | None:
        """When the process began, in clock ticks since the machine did. None where it has ended, reaped or not."""
        fields = self._stat(pid)
        return int(fields[19]) if fields and fields[0] not in "ZX" else None

    def machine_cpu_seconds(self) -> float | None:
        """Used by everything on the machine: not idle, and not waiting for a disk."""
        line = (self._read("proc/stat") or "").split("\n", 1)[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        ticks = [int(value) for value in line[1:9]]  # user nice system idle iowait irq softirq steal
        return (sum(ticks) - ticks[3] - ticks[4]) / self._ticks_per_second

    def resident_bytes(self, pid: int) -> int | None:
        """What of the process is in memory; pages that processes share count in each."""
        value = _field(self._read(f"proc/{pid}/status"), "VmRSS:")
        return None if value is None else 1024 * value

    def memory_used(self, pid: int) -> int | None:
        """Of the container of `pid` where it has a limit, else of the machine; caches of files that can go count as
        free."""
        if (folder := self._limited(pid, "memory")) is not None:
            current = _number(self._read_first(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes"))
            inactive = _field(self._read(f"{folder}/memory.stat"), "total_inactive_file", "inactive_file")
            return None if current is None else max(current - (inactive or 0), 0)
        total, available = (_field(self._read("proc/meminfo"), name) for name in ("MemTotal:", "MemAvailable:"))
        return None if total is None or available is None else 1024 * (total - available)

    def memory_limit(self, pid: int) -> int | None:
        machine = _field(self._read("proc/meminfo"), "MemTotal:")
        total = None if machine is None else 1024 * machine
        if (folder := self._limited(pid, "memory")) is None:
            return total
        limit = self._memory_limit_of(folder)
        return min(limit, total) if limit is not None and total is not None else limit

    def cpu_quota(self, pid: int) -> float | None:
        """Cores that the container of `pid` may use; None: no limit."""
        found = [quota for folder in self._cgroups(pid, "cpu") if (quota := self._quota_of(folder)) is not None]
        return min(found, default=None)

    def interface_bytes(self, name: str) -> tuple[int, int] | None:
        """Received and sent since the interface came up."""
        for line in (self._read("proc/net/dev") or "").splitlines():
            label, colon, figures = line.partition(":")
            if colon and label.strip() == name:
                columns = figures.split()
                return int(columns[0]), int(columns[8])
        return None

    def interface_speed(self, name: str) -> float | None:
        """Bytes a second of one direction; virtual interfaces have none."""
        megabits = _number(self._read(f"sys/class/net/{name}/speed"))
        return None if megabits is None or megabits <= 0 else megabits * 1e6 / 8

    def route_interface(self, address: str) -> str | None:
        """The interface on which packets to an IPv4 address leave: the longest prefix that fits."""
        target, best = _ipv4(address), (-1, "")
        for line in (self._read("proc/net/route") or "").splitlines()[1:]:
            name, destination, _, flags, _, _, _, mask, *_ = line.split()
            network, bits = _little_endian(destination), _little_endian(mask)
            if int(flags, 16) & 1 and target & bits == network:
                best = max(best, (bits.bit_count(), name))
        return best[1] or None

    def listener(self, port: int) -> int | None:
        """The process that listens on a TCP port; None also for another user's, whose sockets are not shown."""
        sockets = {f"socket:[{inode}]" for inode in self._listening_inodes(port)}
        if not sockets:
            return None
        return next((pid for pid in self._pids() if not sockets.isdisjoint(self._open_files(pid))), None)

    def children(self, pid: int) -> list[int]:
        """By the parent that each process names: a process's own lists are one a thread, and where threads come and go
        children move from one to the next unseen."""
        return [found for found in sorted(self._pids()) if self._parent(found) == pid]

    def command_line(self, pid: int) -> list[str]:
        return (self._read(f"proc/{pid}/cmdline") or "").rstrip("\0").split("\0")

    def program_name(self, pid: int) -> str | None:
        """None also for one that cannot be printed."""
        name = (self._read(f"proc/{pid}/comm") or "").strip()
        return name if name and name.isprintable() else None

    def runs(self, pid: int, program: Path) -> bool:
        try:
            return (self._root / f"proc/{pid}/exe").samefile(program)
        except OSError:
            return False

    def _stat(self, pid: int) -> list[str] | None:
        """The fields of proc_pid_stat(5) behind the name, which may hold spaces and parentheses: the third is 0."""
        text = self._read(f"proc/{pid}/stat")
        return None if text is None else text.rpartition(")")[2].split()

    def _parent(self, pid: int) -> int | None:
        fields = self._stat(pid)
        return int(fields[1]) if fields else None

    def _listening_inodes(self, port: int) -> Iterator[str]:
        for table in ("proc/net/tcp", "proc/net/tcp6"):
            for line in (self._read(table) or "").splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                    yield columns[9]

    def _pids(self) -> Iterator[int]:
        return (int(folder.name) for folder in (self._root / "proc").iterdir() if folder.name.isdigit())

    def _open_files(self, pid: int) -> Iterator[str]:
        """Nothing of another user's, nor of a process that is gone. Files come and go meanwhile."""
        with suppress(OSError):
            for link in (self._root / f"proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    yield str(link.readlink())

    def _limited(self, pid: int, controller: str) -> str | None:
        """The nearest cgroup of `pid` that limits memory."""
        return next((f for f in self._cgroups(pid, controller) if self._memory_limit_of(f) is not None), None)

    def _memory_limit_of(self, folder: str) -> int | None:
        limit = _number(self._read_first(f"{folder}/memory.max", f"{folder}/memory.limit_in_bytes"))
        return None if limit is None or limit >= _UNLIMITED else limit

    def _quota_of(self, folder: str) -> float | None:
        quota, _, period = (self._read(f"{folder}/cpu.max") or "").partition(" ")
        if not period:
            quota, period = (self._read(f"{folder}/cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        cpu, of = _number(quota), _number(period)
        return None if cpu is None or of is None or cpu <= 0 else cpu / of

    def _cgroups(self, pid: int, controller: str) -> Iterator[str]:
        """Folders of the process's cgroup and of those around it; a container sees its own as the root of the tree."""
        for line in (self._read(f"proc/{pid}/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup"
            parts = [part for part in path.split("/") if part]
            yield from ("/".join([base, *parts[:depth]]) for depth in range(len(parts), -1, -1))

    def _read_first(self, *paths: str) -> str | None:
        return next((text for path in paths if (text := self._read(path)) is not None), None)

    def _read(self, path: str) -> str | None:
        try:
            return (self._root / path).read_text(errors="replace")
        except OSError:
            return None


def _field(text: str | None, *names: str) -> int | None:
    """The number behind the first of `names` that a table of `name number` lines has."""
    rows = {columns[0]: columns[1] for line in (text or "").splitlines() if len(columns := line.split()) > 1}
    return next((int(rows[name]) for name in names if name in rows), None)


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _ipv4(address: str) -> int:
    return int.from_bytes(bytes(int(part) for part in address.split(".")), "big")


def _little_endian(hexadecimal: str) -> int:
    return int.from_bytes(bytes.fromhex(hexadecimal), "little")
