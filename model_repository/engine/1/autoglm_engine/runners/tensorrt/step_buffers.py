"""The small inputs and outputs of a step: side by side in one block, so that one copy takes them to the device, or
back.

A block begins with a region for a decode call of all slots; behind it each step lays out one region for each of its
prefill calls. On the device a block exists once; in pinned memory twice, in turns, so that a step is written while the
one before may still be copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory, aligned

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
    """`decode`: the region of a decode call. `max_rows`: of all prefill calls of a step; one takes at most what
    `prefill_row`, alone in a call, takes.

    `addresses(region)`: where the device has its tensors; `views(turn, region)`: name -> where pinned memory has them.
    """

    def __init__(
        self,
        cuda: Cuda,
        memory: DeviceMemory,
        *,
        decode: Sequence[Format],
        prefill_row: Sequence[Format],
        max_rows: int,
    ) -> None:
        self._cuda = cuda
        self.decode = Region.at(0, decode)
        size = self.decode.end + max_rows * Region.at(0, prefill_row).end
        self._device = memory.allocate("step", size)
        self._turns = [memory.pinned(size) for _ in range(NUM_TURNS)]
        self._decode_views = [self.views(turn, self.decode) for turn in range(NUM_TURNS)]

    def prefill(self, calls: Iterable[Sequence[Format]]) -> list[Region]:
        """The regions of a step's prefill calls."""
        regions = [self.decode]
        for formats in calls:
            regions.append(Region.at(regions[-1].end, formats))
        return regions[1:]

    def decode_views(self, turn: int) -> Views:
        return self._decode_views[turn]

    def views(self, turn: int, region: Region) -> Views:
        return {cell.name: cell.view(self._turns[turn]) for cell in region.cells}

    def addresses(self, region: Region) -> dict[str, int]:
        return {cell.name: self._device + cell.offset for cell in region.cells}

    def upload(self, turn: int, regions: Sequence[Region]) -> None:
        """Enqueue one copy of the regions, which lie side by side, to the device."""
        begin, size = regions[0].begin, regions[-1].end - regions[0].begin
        self._cuda.copy(self._device + begin, self._host(turn) + begin, size)

    def download(self, turn: int, regions: Sequence[Region]) -> None:
        begin, size = regions[0].begin, regions[-1].end - regions[0].begin
        self._cuda.copy(self._host(turn) + begin, self._device + begin, size)

    def _host(self, turn: int) -> int:
        return int(self._turns[turn].ctypes.data)
