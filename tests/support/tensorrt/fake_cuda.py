"""A GPU that never was: its own address space, and a stream that runs nothing before somebody waits.

What is enqueued runs when an event after it is waited for, or everything is, and reads and writes memory as it is then:
a missing wait, pinned memory that is used again too early, memory that was freed show as wrong answers or errors. Every
address is checked when work is enqueued and again when it runs. Freed memory is overwritten.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from autoglm_engine.errors import DeviceError
from autoglm_engine.runners.cuda.api import ALIGNMENT, Device, HostBytes

Bytes = npt.NDArray[np.uint8]
Operation = Callable[[], None]
_FIRST_ADDRESS = 0x7F00_0000_0000
_GAP = 4096  # between two blocks, so that a step past the end of one ends in no other
_GARBAGE = 0xA5


@dataclass
class FakeEvent:
    is_destroyed: bool = False
    num_recorded: int = 0
    num_passed: int = 0


@dataclass
class FakeGraph:
    operations: list[Operation]
    is_destroyed: bool = False
    num_launches: int = 0


@dataclass
class Block:
    address: int
    content: Bytes
    is_pinned: bool
    is_freed: bool = False


@dataclass
class FakeCuda:
    """See `autoglm_engine.runners.cuda.api.Cuda`. `fail_at`: the number of the call, from 1, that raises; 0 for none.

    `is_final`: every call after that one raises too, as on a GPU that is gone.
    """

    compute_capability: str = "8.9"
    name: str = "NVIDIA L4"
    driver: str = "580.65.06"
    total_memory: int = 1 << 32
    fail_at: int = 0
    is_final: bool = False
    failing: str = ""  # the name of calls that raise
    stream: int = 0x51
    calls: list[str] = field(default_factory=list)
    graphs: list[FakeGraph] = field(default_factory=list)
    events: list[FakeEvent] = field(default_factory=list)
    is_closed: bool = False
    _blocks: dict[int, Block] = field(default_factory=dict)
    _queue: deque[Operation] = field(default_factory=deque)
    _captured: list[Operation] | None = None
    _next_address: int = _FIRST_ADDRESS

    # ---- for tests

    @property
    def leaks(self) -> list[str]:
        """What is still allocated."""
        found = [f"{len(block.content)} bytes" for block in self._blocks.values() if not block.is_freed]
        found += ["a graph" for graph in self.graphs if not graph.is_destroyed]
        found += ["an event" for event in self.events if not event.is_destroyed]
        return found if self.is_closed else [*found, "the stream"]

    @property
    def used(self) -> int:
        """Bytes of device memory."""
        return sum(len(b.content) for b in self._blocks.values() if not (b.is_freed or b.is_pinned))

    def count(self, name: str) -> int:
        return Counter(self.calls)[name]

    def bytes_at(self, address: int, num_bytes: int) -> Bytes:
        """A view of live memory. Raises AssertionError for anything else."""
        for block in self._blocks.values():
            offset = address - block.address
            if 0 <= offset < len(block.content):
                assert not block.is_freed, f"{address:#x} is used after it was freed"
                assert offset + num_bytes <= len(block.content), f"{num_bytes} bytes at {address:#x} leave their block"
                return block.content[offset : offset + num_bytes]
        raise AssertionError(f"there is no memory at {address:#x}")

    def enqueue(self, operation: Operation) -> None:
        """For a fake TensorRT, whose work is on the same stream."""
        if self._captured is not None:
            self._captured.append(operation)
        else:
            self._queue.append(operation)

    @property
    def is_capturing(self) -> bool:
        return self._captured is not None

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def device(self) -> Device:
        return Device(self.name, self.compute_capability, self.driver)

    # ---- memory

    def free_memory(self) -> int:
        self._call("free_memory")
        return self.total_memory - self.used

    def allocate(self, num_bytes: int) -> int:
        self._call("allocate", is_synchronous=True)
        if num_bytes > self.total_memory - self.used:
            raise DeviceError(f"the GPU could not allocate {num_bytes} bytes: out of memory", is_out_of_memory=True)
        address, self._next_address = self._next_address, self._next_address + num_bytes + _GAP
        self._next_address = -(-self._next_address // ALIGNMENT) * ALIGNMENT
        self._blocks[address] = Block(address, np.full(num_bytes, _GARBAGE, np.uint8), is_pinned=False)
        return address

    def free(self, address: int) -> None:
        self._release(address, is_pinned=False)
        self._call("free", is_synchronous=True)

    def allocate_pinned(self, num_bytes: int) -> HostBytes:
        self._call("allocate_pinned", is_synchronous=True)
        memory = np.zeros(num_bytes, np.uint8)
        self._blocks[memory.ctypes.data] = Block(memory.ctypes.data, memory, is_pinned=True)
        return memory

    def free_pinned(self, memory: HostBytes) -> None:
        self._release(memory.ctypes.data, is_pinned=True)
        self._call("free_pinned", is_synchronous=True)

    def clear(self, address: int, num_bytes: int) -> None:
        self._call("clear")
        self.bytes_at(address, num_bytes)
        self.enqueue(lambda: self.bytes_at(address, num_bytes).fill(0))

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self._call("copy")
        self._enqueue_copy(target, source, num_bytes)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        self._call("copy_rows")
        assert width <= min(target_pitch, source_pitch), "a row is longer than the pitch"
        for row in range(height):
            self._enqueue_copy(target + row * target_pitch, source + row * source_pitch, width)

    # ---- order

    def create_event(self) -> FakeEvent:
        self._call("create_event")
        self.events.append(FakeEvent())
        return self.events[-1]

    def destroy_event(self, event: FakeEvent) -> None:
        assert not event.is_destroyed, "an event is destroyed twice"
        event.is_destroyed = True
        self._call("destroy_event")

    def record(self, event: FakeEvent) -> None:
        self._call("record")
        assert not event.is_destroyed, "an event is recorded after it was destroyed"
        event.num_recorded += 1
        number = event.num_recorded

        def passed() -> None:
            event.num_passed = number

        self.enqueue(passed)

    def wait(self, event: FakeEvent) -> None:
        self._call("wait", is_synchronous=True)
        assert not event.is_destroyed, "an event is waited for after it was destroyed"
        while event.num_passed < event.num_recorded and self._queue:
            self._queue.popleft()()

    def synchronize(self) -> None:
        self._call("synchronize", is_synchronous=True)
        while self._queue:
            self._queue.popleft()()

    # ---- graphs

    def capture(self, enqueue: Callable[[], None]) -> FakeGraph:
        self._call("capture")
        assert self._captured is None, "a capture begins inside another one"
        self._captured = []
        try:
            enqueue()
            graph = FakeGraph(self._captured)
        finally:
            self._captured = None
        self.graphs.append(graph)
        return graph

    def launch(self, graph: FakeGraph) -> None:
        self._call("launch")
        assert not graph.is_destroyed, "a graph is launched after it was destroyed"
        graph.num_launches += 1
        for operation in graph.operations:
            self.enqueue(operation)

    def destroy_graph(self, graph: FakeGraph) -> None:
        assert not graph.is_destroyed, "a graph is destroyed twice"
        assert not self._queue, "a graph is destroyed while work is in flight"
        graph.is_destroyed = True
        self._call("destroy_graph")

    def close(self) -> None:
        assert not self._queue or self.is_final, "the stream is destroyed while work is in flight"
        self.is_closed = True
        self._call("close")

    # ---- inside

    def _call(self, name: str, *, is_synchronous: bool = False) -> None:
        self.calls.append(name)
        assert not (is_synchronous and self.is_capturing), f"{name} during a capture"
        number = len(self.calls)
        if name == self.failing or number == self.fail_at or (self.is_final and 0 < self.fail_at < number):
            if self.is_final or name in ("wait", "synchronize"):
                self._queue.clear()  # what it waits for never runs
            raise DeviceError(f"the GPU could not {name}: injected")

    def _release(self, address: int, *, is_pinned: bool) -> None:
        block = self._blocks.get(address)
        assert block is not None and block.is_pinned == is_pinned, f"{address:#x} was not allocated"
        assert not block.is_freed, f"{address:#x} is freed twice"
        assert not self._queue, "memory is freed while work is in flight"
        block.is_freed = True
        block.content.fill(_GARBAGE)

    def _enqueue_copy(self, target: int, source: int, num_bytes: int) -> None:
        self.bytes_at(target, num_bytes)
        self.bytes_at(source, num_bytes)
        assert abs(target - source) >= num_bytes, "a copy overlaps itself"

        def run() -> None:
            self.bytes_at(target, num_bytes)[:] = self.bytes_at(source, num_bytes)

        self.enqueue(run)
