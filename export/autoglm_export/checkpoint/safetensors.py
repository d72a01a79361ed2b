"""Reads safetensors files with numpy alone, bfloat16 included (numpy has no such type, so its own reader cannot).

Format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header
`name -> {dtype, shape, data_offsets}`, then the data; the offsets count from the end of the header. As the format's own
reader demands, the tensors lie one behind the other, without gaps, and fill the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_export.errors import CheckpointError, TensorError

from .weights import Array, Shape, finite

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Of types that are not read, so that their tensors are still known to lie where they should.
_OTHER_BYTES = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1) | {
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: `offset` and `end` are in bytes from the start of the file."""

    path: Path
    dtype: str
    shape: Shape
    offset: int
    end: int


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
        return finite(name, _as_float32(raw, entry.dtype).reshape(stop - start, *entry.shape[1:]))


def _as_float32(raw: npt.NDArray[Any], dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, each checked to lie whole and alone inside it. Raises CheckpointError, naming the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{path.name} is truncated or no safetensors file: it has {size} bytes")
        header = stream.read(length)
    try:
        records = json.loads(header)
        records.pop("__metadata__", None)
        entries = {name: _entry(path, name, record, 8 + length, size) for name, record in records.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path.name} is damaged: {error}") from None
    _check_places(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, record: dict[str, Any], data_start: int, size: int) -> Entry:
    begin, end = record["data_offsets"]
    dtype, shape = record["dtype"], tuple(record["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"the tensor {name} has data_offsets {[begin, end]} and shape {list(shape)}")
    if data_start + end > size:
        raise CheckpointError(
            f"{path.name} is truncated: the tensor {name} ends at byte {data_start + end}, the file at {size}"
        )
    item_bytes = (ITEM_BYTES | _OTHER_BYTES).get(dtype)
    if end < begin or (item_bytes and end - begin != prod(shape) * item_bytes):
        raise TensorError(
            f"the tensor {name} in {path.name} has {end - begin} bytes, not those of {dtype} {list(shape)}"
        )
    return Entry(path=path, dtype=dtype, shape=shape, offset=data_start + begin, end=data_start + end)


def _check_places(path: Path, entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    place, before = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].end)):
        if entry.offset != place:
            what = "overlaps" if entry.offset < place else "leaves a gap behind"
            raise TensorError(f"the tensor {name} in {path.name} {what} {before}: it begins at byte {entry.offset}")
        place, before = entry.end, name
    if place != size:
        raise TensorError(f"{path.name} has {size} bytes, and its tensors end at byte {place}")
