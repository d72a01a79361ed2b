"""Where `OnnxRunner` keeps keys and values: in the host's memory, or on a GPU.

Either way one block, `[layers, 2, slots, kv heads, length, head_size]`, whose parts the graph is given by address.
A run computes a contiguous range of slots, so an idle slot inside it computes a token too, and writes its keys and
values: on the host at position 0, where that costs least, and what was there is put back; on a GPU, where that would be
many small copies, at a spare position behind the slot's end that nothing else reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import DeviceError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory, free_all


@dataclass(frozen=True, slots=True)
class CacheLayout:
    num_layers: int
    num_slots: int
    num_kv_heads: int
    length: int  # positions of a slot, spare ones among them
    head_size: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, manifest: Manifest) -> CacheLayout:
        shape = manifest.cache
        length = manifest.runtime_details.get("cache_length", manifest.max_length)
        dtype = np.dtype(shape.dtype)
        return cls(shape.num_layers, manifest.num_slots, shape.num_kv_heads, length, shape.head_size, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_layers, 2, *self.rows(self.num_slots))

    def rows(self, num_slots: int) -> tuple[int, ...]:
        """Shape of the keys or the values of a layer, of so many slots."""
        return (num_slots, self.num_kv_heads, self.length, self.head_size)

    @property
    def bytes_per_position(self) -> int:
        """Of one head."""
        return self.head_size * self.dtype.itemsize

    @property
    def bytes_per_head(self) -> int:
        return self.length * self.bytes_per_position

    @property
    def bytes_per_slot(self) -> int:
        """Of a layer's keys, or of its values."""
        return self.num_kv_heads * self.bytes_per_head

    @property
    def num_bytes(self) -> int:
        return self.num_layers * 2 * self.num_slots * self.bytes_per_slot

    def offset(self, part: int, slot: int) -> int:
        """Bytes from the block's beginning. `part`: 2 * layer for keys, 2 * layer + 1 for values."""
        return (part * self.num_slots + slot) * self.bytes_per_slot


class CacheMemory(Protocol):
    @property
    def layout(self) -> CacheLayout: ...

    @property
    def device(self) -> str:
        """ONNX Runtime's name for where the block is."""
        ...

    @property
    def address(self) -> int:
        """Of the block; it never moves."""
        ...

    @property
    def idle_position(self) -> int:
        """Where the row of an idle slot computes."""
        ...

    def running(self, idle: Sequence[int]) -> AbstractContextManager[None]:
        """For the time of a run, after which the slots `idle` hold what they held before. DeviceError: a GPU failed in
        it."""
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another one."""
        ...

    def close(self) -> None:
        """Let go of the block. May be called twice."""
        ...


class HostMemory:
    """See `CacheMemory`. `array` is the block."""

    device = "cpu"
    idle_position = 0

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.array: npt.NDArray[Any] = np.zeros(layout.shape, layout.dtype)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    @contextmanager
    def running(self, idle: Sequence[int]) -> Iterator[None]:
        if not idle:
            yield
            return
        kept = self.array[:, :, idle, :, self.idle_position]
        try:
            yield
        finally:
            self.array[:, :, idle, :, self.idle_position] = kept

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.array[:, :, target, :, :length] = self.array[:, :, source, :, :length]

    def close(self) -> None:
        pass


class GpuMemory:
    """See `CacheMemory`. A run is over when ONNX Runtime returns, and a copy when it returns here: they never
    overlap."""

    device = "cuda"

    def __init__(self, layout: CacheLayout, cuda: Cuda) -> None:
        """`cuda` is closed with it, and where it raises. Raises DeviceError."""
        self.layout, self._cuda, self._cleanup = layout, cuda, ExitStack()
        self.idle_position = layout.length - 1
        self._is_closed = False
        self._cleanup.callback(cuda.close)
        try:
            self.address = DeviceMemory(cuda, self._cleanup).allocate("key_value_cache", layout.num_bytes)
            cuda.synchronize()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def running(self, idle: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever ONNX Runtime calls it; the GPU cannot be trusted any more
            raise DeviceError(f"the step could not be computed: {error}") from error

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        if source == target or not length:
            return
        layout = self.layout
        pitch, width = layout.bytes_per_head, length * layout.bytes_per_position
        for part in range(2 * layout.num_layers):
            begin, end = (self.address + layout.offset(part, slot) for slot in (source, target))
            self._cuda.copy_rows(end, pitch, begin, pitch, width, layout.num_kv_heads)
        self._cuda.synchronize()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            free_all(self._cuda, self._cleanup)
