"""Every block of memory and event of a runner: made once at load, freed in one place, memory added up by what it is
for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack

from .api import ALIGNMENT, Cuda, Event, HostBytes

_log = logging.getLogger(__name__)


def aligned(num_bytes: int) -> int:
    """Rounded up to what the next block may begin at."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class DeviceMemory:
    """`cleanup` frees what is made here."""

    def __init__(self, cuda: Cuda, cleanup: ExitStack) -> None:
        self._cuda = cuda
        self._cleanup = cleanup
        self._bytes: Counter[str] = Counter()

    @property
    def summary(self) -> Mapping[str, int]:
        """Purpose -> bytes; "pinned" is host memory."""
        return dict(self._bytes)

    def note(self, purpose: str, num_bytes: int) -> None:
        """Count memory that somebody else allocates."""
        self._bytes[purpose] += num_bytes

    def allocate(self, purpose: str, num_bytes: int) -> int:
        """Address of zeroed device memory; at least one byte is allocated."""
        size = aligned(max(num_bytes, 1))
        address = self._cuda.allocate(size)
        self._cleanup.callback(self._cuda.free, address)
        self._cuda.clear(address, size)
        self._bytes[purpose] += size
        return address

    def pinned(self, num_bytes: int) -> HostBytes:
        memory = self._cuda.allocate_pinned(aligned(num_bytes))
        self._cleanup.callback(self._cuda.free_pinned, memory)
        self._bytes["pinned"] += len(memory)
        return memory

    def event(self) -> Event:
        event = self._cuda.create_event()
        self._cleanup.callback(self._cuda.destroy_event, event)
        return event


def free_all(cuda: Cuda, cleanup: ExitStack) -> None:
    """Wait for what is in flight, then free everything, what was made last first and whatever fails on the way."""
    cleanup.callback(cuda.synchronize)
    try:
        cleanup.close()
    except Exception as error:  # the GPU has failed before, or does now that nobody needs it any more
        _log.warning("the GPU's memory was not freed in good order: %s", error)


def readable(summary: Mapping[str, int]) -> str:
    """Such as "weights 1.2 GB, pinned 0.1 GB"."""
    return ", ".join(f"{purpose} {num_bytes / 1e9:.3g} GB" for purpose, num_bytes in summary.items())
