"""Where `OnnxRunner` keeps keys and values: in the host's memory, or on a GPU.

Either way one block, `[layers, 2, slots, kv heads, length, head_size]`, whose parts the graph is given by address.
A run computes a contiguous range of slots, so an idle slot inside it computes a token too, and writes its keys and values:
on the host at position 0, where that costs least, and what was there is put back; on a GPU, where that would be many small
copies, at a spare position behind the slot's end that nothing else reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .manifest import Manifest


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

    def keeping(self, slots: Sequence[int]) -> AbstractContextManager[None]:
        """After the block of `with`, idle slots hold what they held before."""
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
    def keeping(self, slots: Sequence[int]) -> Iterator[None]:
        if not slots:
            yield
            return
        kept = self.array[:, :, slots, :, self.idle_position]
        try:
            yield
        finally:
            self.array[:, :, slots, :, self.idle_position] = kept

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.array[:, :, target, :, :length] = self.array[:, :, source, :, :length]

    def close(self) -> None:
        pass


class Gpu(Protocol):
    """What `GpuMemory` asks of a GPU. Addresses are integers; what is enqueued runs in order, after the call."""

    def allocate(self, num_bytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def clear(self, address: int, num_bytes: int) -> None:
        """Enqueue writing zeros."""
        ...

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Enqueue a copy of `height` rows of `width` bytes that begin every `pitch` bytes."""
        ...

    def synchronize(self) -> None:
        """Block until everything that was enqueued has run."""
        ...

    def close(self) -> None: ...


class GpuMemory:
    """See `CacheMemory`. A run is over when ONNX Runtime returns, and a copy when it returns here: they never overlap."""

    device = "cuda"

    def __init__(self, layout: CacheLayout, gpu: Gpu) -> None:
        """Closes `gpu` in the end. Zeroed: what was never written is masked, but a NaN times nothing is a NaN."""
        self.layout, self._gpu = layout, gpu
        self.idle_position = layout.length - 1
        self.address = gpu.allocate(layout.num_bytes)
        gpu.clear(self.address, layout.num_bytes)
        gpu.synchronize()

    def keeping(self, slots: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext()

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        if source == target or not length:
            return
        layout = self.layout
        assert max(source, target) < layout.num_slots and length <= layout.length, "a copy past the cache's end"
        pitch, width = layout.bytes_per_head, length * layout.bytes_per_position
        for part in range(2 * layout.num_layers):
            begin, end = (self.address + layout.offset(part, slot) for slot in (source, target))
            self._gpu.copy_rows(end, pitch, begin, pitch, width, layout.num_kv_heads)
        self._gpu.synchronize()

    def close(self) -> None:
        if self.address:
            address, self.address = self.address, 0
            self._gpu.free(address)
            self._gpu.close()
