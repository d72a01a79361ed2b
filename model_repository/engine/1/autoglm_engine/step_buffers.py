"""The small inputs and outputs of a step: side by side in one block, so that one copy takes them to the device, or back.

A block has one region for a decode call of all slots and one for each prefill call that a step may have. On the device
it exists once; in pinned memory twice, in turns, so that a step is written while the one before may still be copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .cuda import Cuda
from .device_memory import DeviceMemory, aligned

NUM_TURNS = 2
Views = Mapping[str, npt.NDArray[Any]]
Format = tuple[str, npt.DTypeLike, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor in a block. `offset`: bytes from the block's begin, aligned."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def view(self, memory: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        return memory[self.offset : self.offset + self.num_bytes].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Region:
    """The tensors of one call; bytes `begin ... end` of its block."""

    cells: tuple[Cell, ...]
    begin: int
    end: int

    @classmethod
    def at(cls, begin: int, formats: Sequence[Format]) -> Region:
        cells, end = [], begin
        for name, dtype, shape in formats:
            cells.append(Cell(name, dtype, shape, end))
            end = aligned(end + cells[-1].num_bytes)
        return cls(tuple(cells), begin, end)


class MirroredBlock:
    """`decode` and `prefill[i]`: the regions; `addresses(region)`: where the device has its tensors."""

    def __init__(
        self,
        cuda: Cuda,
        memory: DeviceMemory,
        *,
        decode: Sequence[Format],
        prefill: Sequence[Format],
        num_prefill: int,
    ) -> None:
        self._cuda = cuda
        self.decode = Region.at(0, decode)
        self.prefill: list[Region] = []
        for _ in range(num_prefill):
            self.prefill.append(Region.at((self.prefill or [self.decode])[-1].end, prefill))
        size = (self.prefill or [self.decode])[-1].end
        self._device = memory.allocate("step", size)
        turns = [memory.pinned(size) for _ in range(NUM_TURNS)]
        self._hosts = [int(host.ctypes.data) for host in turns]
        self._decode_views = [_views(self.decode, host) for host in turns]
        self._prefill_views = [[_views(region, host) for region in self.prefill] for host in turns]

    def decode_views(self, turn: int) -> Views:
        """Name -> the decode region's tensor in pinned memory."""
        return self._decode_views[turn]

    def prefill_views(self, turn: int, index: int) -> Views:
        return self._prefill_views[turn][index]

    def addresses(self, region: Region) -> dict[str, int]:
        return {cell.name: self._device + cell.offset for cell in region.cells}

    def upload(self, turn: int, has_decode: bool, num_prefill: int) -> None:
        """Enqueue one copy of the regions in use to the device."""
        begin, size = self._used(has_decode, num_prefill)
        self._cuda.copy(self._device + begin, self._hosts[turn] + begin, size)

    def download(self, turn: int, has_decode: bool, num_prefill: int) -> None:
        begin, size = self._used(has_decode, num_prefill)
        self._cuda.copy(self._hosts[turn] + begin, self._device + begin, size)

    def _used(self, has_decode: bool, num_prefill: int) -> tuple[int, int]:
        begin = self.decode.begin if has_decode else self.decode.end
        end = self.prefill[num_prefill - 1].end if num_prefill else self.decode.end
        return begin, end - begin


def _views(region: Region, memory: npt.NDArray[np.uint8]) -> Views:
    return {cell.name: cell.view(memory) for cell in region.cells}
