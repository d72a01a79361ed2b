"""The slots' keys and values on the device: one buffer `[num_slots, num_kv_heads, cache_length, head_size]` a layer and
kind, at the same address for as long as the runner lives."""

from __future__ import annotations

from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory

from .shapes import TensorShapes


class KeyValueCache:
    """Zeroed at load: what was never written is masked, but a NaN times nothing would still be a NaN. For the same
    reason a slot whose logits were not finite is zeroed before it is used again (`runner`)."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, shapes: TensorShapes) -> None:
        self._cuda = cuda
        self._shapes = shapes
        size = shapes.num_slots * shapes.bytes_per_slot
        self._buffers = {name: memory.allocate("key_value_cache", size) for name in shapes.cache_names}

    def addresses(self, slot: int = 0) -> dict[str, int]:
        """Of the tensors past_* and present_*, the same for both, of rows that begin with `slot`."""
        offset = slot * self._shapes.bytes_per_slot
        return {
            f"{side}_{name}": address + offset
            for name, address in self._buffers.items()
            for side in ("past", "present")
        }

    def clear(self, slot: int) -> None:
        """Enqueue zeroing the slot."""
        for address in self._buffers.values():
            self._cuda.clear(address + slot * self._shapes.bytes_per_slot, self._shapes.bytes_per_slot)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Enqueue copying the first `length` positions of a slot to another one."""
        shapes = self._shapes
        if source == target or not length:
            return
        width, pitch = length * shapes.bytes_per_position, shapes.bytes_per_head
        for address in self._buffers.values():
            begin, end = address + source * shapes.bytes_per_slot, address + target * shapes.bytes_per_slot
            self._cuda.copy_rows(end, pitch, begin, pitch, width, shapes.num_kv_heads)
