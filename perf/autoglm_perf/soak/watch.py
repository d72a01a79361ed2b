"""What a server holds while it is soaked: memory, shared memory, slots; a sample every second or two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoglm_client import AsyncClient, AutoGLMError

from autoglm_perf.system.processes import read_memory


@dataclass(frozen=True, slots=True)
class Sample:
    """`allocated`, `proportional`, `resident`: bytes by process, as `processes.Memory` has them. `shared_bytes`: of the
    regions in /dev/shm that the server maps."""

    at: float  # time.monotonic()
    allocated: Mapping[str, int]
    proportional: Mapping[str, int]
    resident: Mapping[str, int]
    shared_files: int
    shared_bytes: int
    engine: Mapping[str, int]  # its counters; empty where it did not answer

    @property
    def memory(self) -> int:
        """What all processes have allocated: what can leak. Pages of files are left out, because how many of them count
        as a server's changes with every other program that maps the same ones."""
        return sum(self.allocated.values())

    @property
    def with_files(self) -> int:
        return sum(self.proportional.values())


class Watch:
    """Samples until it is told to stop; `regions` is every region of shared memory that was seen."""

    def __init__(self, client: AsyncClient, pids: Mapping[str, int], period: float) -> None:
        self._client = client
        self._pids = pids
        self._period = period
        self.samples: list[Sample] = []
        self.regions: set[Path] = set()
        self.lag_by_second: dict[int, float] = {}  # seconds that this program's own loop was late by, at most

    async def run(self, done: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure_lag(done))
            group.create_task(self._sample_on(done))

    async def look(self) -> Sample:
        """One sample, kept."""
        engine = await self._engine()
        sample = await asyncio.to_thread(self._read, engine)
        self.samples.append(sample)
        return sample

    async def _sample_on(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self.look()
            await _wait(done, self._period)

    async def _measure_lag(self, done: asyncio.Event, tick: float = 0.02) -> None:
        while not done.is_set():
            before = time.monotonic()
            await asyncio.sleep(tick)
            now = time.monotonic()
            self.lag_by_second[int(now)] = max(self.lag_by_second.get(int(now), 0.0), now - before - tick)

    async def _engine(self) -> dict[str, int]:
        try:
            stats = (await self._client.stats()).engine
        except AutoGLMError:
            return {}
        return {name: value for name, value in stats.items() if isinstance(value, int)}

    def _read(self, engine: Mapping[str, int]) -> Sample:
        memory = {name: read_memory(pid) for name, pid in self._pids.items()}
        mapped = set[Path]().union(*(mapped_regions(pid) for pid in self._pids.values()))
        self.regions |= mapped
        sizes = [_size(region) for region in mapped]
        return Sample(
            time.monotonic(),
            {name: found.allocated for name, found in memory.items()},
            {name: found.proportional for name, found in memory.items()},
            {name: found.resident for name, found in memory.items()},
            len(sizes),
            sum(sizes),
            engine,
        )


def mapped_regions(pid: int, root: Path = Path("/proc")) -> set[Path]:
    """The files in /dev/shm that a process maps; none of a process that is gone."""
    try:
        rows = (root / str(pid) / "maps").read_text().splitlines()
    except OSError:
        return set()
    names = (row.split(maxsplit=5)[5] for row in rows if "/dev/shm/" in row)
    return {Path(name) for name in names if not name.endswith("(deleted)")}


def _size(region: Path) -> int:
    """Bytes in use, which may be fewer than the file is long."""
    try:
        return 512 * region.stat().st_blocks
    except OSError:
        return 0


async def _wait(done: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(done.wait(), seconds)
    except TimeoutError:
        return


def series(samples: list[Sample], began: float, value: Callable[[Sample], float]) -> tuple[tuple[float, float], ...]:
    """(seconds since `began`, value) of each sample."""
    return tuple((sample.at - began, value(sample)) for sample in samples)
