"""The seam to a GPU: memory, copies, events and graphs, all on one stream.

Addresses are plain integers; copies tell by them which side is which. Whatever is enqueued runs in order, later than
the call: what it reads and writes must stay as it is until an event after it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ALIGNMENT = 256  # bytes; of every address that TensorRT is given

HostBytes = npt.NDArray[np.uint8]
Event = Any
Graph = Any


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as far as its answers depend on it. `driver`: such as "580.65.06"."""

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver {self.driver}"


class Cuda(Protocol):
    """One GPU and one stream on it. Every method raises DeviceError."""

    @property
    def stream(self) -> int:
        """The stream's handle."""
        ...

    @property
    def compute_capability(self) -> str:
        """Such as "8.9"."""
        ...

    @property
    def device(self) -> Device: ...

    def free_memory(self) -> int:
        """Bytes."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Address of device memory, a multiple of ALIGNMENT. Its content is undefined."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, num_bytes: int) -> HostBytes:
        """Host memory that copies reach without the CPU; valid until it is given to `free_pinned`."""
        ...

    def free_pinned(self, memory: HostBytes) -> None: ...

    def clear(self, address: int, num_bytes: int) -> None:
        """Enqueue writing zeros to device memory."""
        ...

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Enqueue a copy; each side is device memory or pinned memory."""
        ...

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Enqueue a copy of `height` rows of `width` bytes that begin every `pitch` bytes."""
        ...

    def create_event(self) -> Event: ...

    def destroy_event(self, event: Event) -> None: ...

    def record(self, event: Event) -> None:
        """Enqueue the event."""
        ...

    def wait(self, event: Event) -> None:
        """Block until the event's last recording has passed, or return at once where there was none."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` puts on the stream, as a graph, without running it. Raises what `enqueue` raises."""
        ...

    def launch(self, graph: Graph) -> None: ...

    def destroy_graph(self, graph: Graph) -> None: ...

    def synchronize(self) -> None:
        """Block until everything that was enqueued has run."""
        ...

    def close(self) -> None:
        """Let go of the stream. May be called twice."""
        ...
