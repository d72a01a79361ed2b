"""Which process runs which test file when `pytest -n` starts several: files that wait beside files that compute."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# Of the files that take longest, the longest first: who begins with them does not end with them, alone.
LONG_FILES = (
    "tests/tensorrt/test_tensorrt_parity.py",
    "tests/export/test_parity.py",
    "tests/tensorrt/test_tensorrt_lowering.py",
    "tests/vision/test_image_cache.py",
    "tests/server/test_server.py",
    "tests/engine/test_memory_flat.py",
)


def starts_servers(path: Path) -> bool:
    return "mark.server" in path.read_text()


def next_file(waiting: Iterable[str], servers: frozenset[str], prefers_servers: bool) -> str:
    """The one of `waiting`, which is not empty, that a process should run now: of the kind it prefers if there is one,
    of these the longest that is known, or the first."""
    files = list(waiting)
    preferred = [file for file in files if (file in servers) is prefers_servers]
    return min(preferred or files, key=lambda file: LONG_FILES.index(file) if file in LONG_FILES else len(LONG_FILES))


class TwoKindsOfFiles(LoadFileScheduling):
    """As `--dist loadfile`, where every other process prefers files that start real servers: these wait for most of
    their time, and leave the cores to the others."""

    @cached_property
    def _servers(self) -> frozenset[str]:
        return frozenset(file for file in self.workqueue if starts_servers(self.config.rootpath / file))

    def _assign_work_unit(self, node: WorkerController) -> None:
        file = next_file(self.workqueue, self._servers, prefers_servers=int(node.gateway.id[2:]) % 2 == 1)
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        """Nobody gets a file before the last test of the one before: another process may be free earlier."""
        if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
            super()._reschedule(node)
