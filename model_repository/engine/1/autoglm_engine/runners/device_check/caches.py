"""The caches of a runner's slots, filled and read back while its GPU is checked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from autoglm_engine.runners.cuda.api import Cuda, HostBytes
from autoglm_engine.runners.cuda.memory import aligned
from autoglm_engine.runners.tensorrt.kv_cache import KeyValueCache
from autoglm_engine.runners.tensorrt.shapes import TensorShapes

from .pattern import KINDS, pattern, poison, restored, scaled, stored

_SIGN = 0x8000  # bit of a float of 16 bits


class DeviceCaches:
    """All layers hold the same. Pinned memory of one layer's slot, twice; `close` frees it and zeroes what was
    filled."""

    def __init__(self, cuda: Cuda, cache: KeyValueCache, shapes: TensorShapes, exponents: Mapping[str, int]) -> None:
        self._cuda, self._cache, self._shapes = cuda, cache, shapes
        self.num_layers = shapes.num_layers
        self._filled: set[int] = set()
        size = (shapes.num_kv_heads, shapes.cache_length, shapes.head_size)
        self._good = {kind: stored(scaled(pattern(kind, *size), exponents[kind]), shapes.cache_dtype) for kind in KINDS}
        self._poison = stored(poison(*size), shapes.cache_dtype)
        self._cleanup = ExitStack()
        self._blocks = {kind: self._pinned(shapes.bytes_per_slot) for kind in KINDS}

    def fill(self, slot: int, length: int, *, negated: bool = False) -> None:
        """The pattern in the first `length` positions of every layer, poison in all others. `negated`: of the other
        sign in the keys."""
        self._filled.add(slot)
        self._cuda.synchronize()  # the blocks may still be read for the slot before
        for kind, block in self._blocks.items():
            values = block.view(np.uint16)[: self._poison.size].reshape(self._poison.shape)
            values[...] = self._poison ^ np.uint16(_SIGN if negated and kind == "key" else 0)
            values[:, :length] = self._good[kind][:, :length]
        addresses = self._cache.addresses(slot)
        for name in self._shapes.cache_names:
            source = int(self._blocks[name.partition("_")[0]].ctypes.data)
            self._cuda.copy(addresses[f"past_{name}"], source, self._shapes.bytes_per_slot)

    def read(self, slot: int, layer: int, start: int, count: int) -> npt.NDArray[np.float32]:
        """`[count, 2 * num_kv_heads * head_size]`: keys, then values, of the positions from `start` on."""
        self._cuda.synchronize()
        return np.concatenate([self._read(f"past_{kind}_{layer}", slot, start, count) for kind in KINDS], axis=1)

    def close(self) -> None:
        """Whatever fails on the way. What was poisoned would be read by nobody, but zeroes are what slots begin
        with."""
        self._cleanup.callback(self._cuda.synchronize)  # also where clearing fails: nothing is freed that is still used
        self._cleanup.callback(self._clear)
        self._cleanup.close()

    def _clear(self) -> None:
        for slot in sorted(self._filled):
            addresses = self._cache.addresses(slot)
            for name in self._shapes.cache_names:
                self._cuda.clear(addresses[f"past_{name}"], self._shapes.bytes_per_slot)

    def _read(self, name: str, slot: int, start: int, count: int) -> npt.NDArray[np.float32]:
        shapes = self._shapes
        width = count * shapes.bytes_per_position
        source = self._cache.addresses(slot)[name] + start * shapes.bytes_per_position
        block = self._blocks["key"]
        self._cuda.copy_rows(int(block.ctypes.data), width, source, shapes.bytes_per_head, width, shapes.num_kv_heads)
        self._cuda.synchronize()
        bits = (
            block[: width * shapes.num_kv_heads].view(np.uint16).reshape(shapes.num_kv_heads, count, shapes.head_size)
        )
        return restored(bits, shapes.cache_dtype).transpose(1, 0, 2).reshape(count, -1)

    def _pinned(self, num_bytes: int) -> HostBytes:
        memory = self._cuda.allocate_pinned(aligned(num_bytes))
        self._cleanup.callback(self._cuda.free_pinned, memory)
        return memory
