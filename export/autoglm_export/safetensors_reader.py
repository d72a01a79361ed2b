"""Reads safetensors files with numpy alone, bfloat16 included (numpy has no such type, so its own reader cannot).

Format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header
`name -> {dtype, shape, data_offsets}`, then the data; the offsets count from the end of the header.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CheckpointError, TensorError
from .weights import Array, Shape

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: `offset` is in bytes from the start of the file."""

    path: Path
    dtype: str
    shape: Shape
    offset: int


class SafetensorsStore:
    """The tensors of one or many shards. Opens a file only to read a tensor of it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._entries: dict[str, Entry] = {}
        for path in paths:
            for name, entry in read_header(path).items():
                if other := self._entries.get(name):
                    raise TensorError(f"the tensor {name} is both in {other.path.name} and in {path.name}")
                self._entries[name] = entry

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> Shape:
        return self._entries[name].shape

    def shard(self, name: str) -> str:
        return self._entries[name].path.name

    def read(self, name: str, rows: slice) -> Array:
        entry = self._entries[name]
        if entry.dtype not in ITEM_BYTES:
            raise TensorError(f"the tensor {name} has type {entry.dtype}; supported are {', '.join(ITEM_BYTES)}")
        row_items = prod(entry.shape[1:])
        start, stop, _ = rows.indices(entry.shape[0])
        raw = np.fromfile(
            entry.path,
            dtype={"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.dtype],
            count=(stop - start) * row_items,
            offset=entry.offset + start * row_items * ITEM_BYTES[entry.dtype],
        )
        return _as_float32(raw, entry.dtype).reshape(stop - start, *entry.shape[1:])


def _as_float32(raw: npt.NDArray[Any], dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, each checked to lie whole inside it. Raises CheckpointError, naming the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{path.name} is truncated or no safetensors file: it has {size} bytes")
        header = stream.read(length)
    try:
        records = json.loads(header)
        records.pop("__metadata__", None)
        return {name: _entry(path, name, record, 8 + length, size) for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header of {path.name} is damaged: {error}") from None


def _entry(path: Path, name: str, record: dict[str, Any], data_start: int, size: int) -> Entry:
    begin, end = record["data_offsets"]
    dtype, shape = record["dtype"], tuple(int(n) for n in record["shape"])
    if data_start + end > size:
        raise CheckpointError(
            f"{path.name} is truncated: the tensor {name} ends at byte {data_start + end}, the file at {size}"
        )
    if dtype in ITEM_BYTES and end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise TensorError(
            f"the tensor {name} in {path.name} has {end - begin} bytes, not those of {dtype} {list(shape)}"
        )
    return Entry(path=path, dtype=dtype, shape=shape, offset=data_start + begin)
