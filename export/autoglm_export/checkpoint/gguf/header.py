"""Walks through the header of a GGUF file before the reader does, which believes every count that it finds there.

Counts are compared with the bytes that are left first. Then, since the reader makes a Python object of every element,
so is the number of all elements with what the largest vocabularies need. Tensors must lie one behind the other, each
at a multiple of the alignment, as llama.cpp asks for, too. Format:
github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files of the other byte order are refused here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from autoglm_export.errors import CheckpointError

MAX_ELEMENTS = (
    1 << 21
)  # of all arrays together: tokens, scores, types and merges of a vocabulary of 300,000 are half of it
MAX_ENTRIES = 1 << 16  # of metadata, and of tensors: the reader makes some kilobytes of each
MAX_DIMENSIONS = 4
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_MIN_FIELD = 8 + 4 + 1  # bytes: an empty name, a type, a value
_UINT32 = 4
_ALIGNMENT, _DEFAULT_ALIGNMENT = b"general.alignment", 32
_MIN_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dimensions, a type, an offset


def check_header(path: Path) -> None:
    """Raises CheckpointError for a header that does not lie whole in its file, or is larger than any model's."""
    if path.stat().st_size < len(_MAGIC) + 4 + 8 + 8:
        raise CheckpointError(f"{path.name} is truncated or no GGUF file: it has {path.stat().st_size} bytes")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(path.name, content, _tensor_types())
        if content[: len(_MAGIC)] != _MAGIC:
            raise CheckpointError(f"{path.name} is no GGUF file: it does not begin with GGUF")
        walk.place = len(_MAGIC)
        if (version := walk.number("I")) not in _VERSIONS:
            raise CheckpointError(f"{path.name} has the GGUF version {version}; supported are 2 and 3")
        num_tensors, num_fields = walk.number("Q"), walk.number("Q")
        walk.check_entries(num_tensors, _MIN_TENSOR, "tensors")
        walk.check_entries(num_fields, _MIN_FIELD, "metadata")
        for _ in range(num_fields):
            walk.field()
        for _ in range(num_tensors):
            walk.tensor()
        walk.check_places()


def _tensor_types() -> dict[int, tuple[int, int]]:
    """Of each, how many numbers a block has, and how many bytes."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """Of a tensor, in bytes from where the first one may begin."""

    begin: int
    end: int
    name: str


@dataclass(slots=True)
class _Walk:
    name: str
    content: mmap.mmap
    tensor_types: Mapping[int, tuple[int, int]]
    place: int = 0
    num_elements: int = 0
    alignment: int = _DEFAULT_ALIGNMENT
    tensors: list[_Place] = field(default_factory=list)

    def number(self, code: str) -> int:
        self.check_room(1, struct.calcsize(code), "bytes")
        (value,) = struct.unpack_from(f"<{code}", self.content, self.place)
        self.place += struct.calcsize(code)
        return int(value)

    def check_room(self, count: int, size: int, what: str) -> None:
        left = len(self.content) - self.place
        if count * size > left:
            raise CheckpointError(
                f"{self.name} is truncated or no GGUF file: it announces {count} {what}, and {left} bytes "
                "are left of it"
            )

    def check_entries(self, count: int, size: int, what: str) -> None:
        self.check_room(count, size, what)
        if count > MAX_ENTRIES:
            raise CheckpointError(f"{self.name} announces {count} {what}; most is {MAX_ENTRIES}")

    def skip(self, count: int, size: int) -> None:
        self.check_room(count, size, "values")
        self.place += count * size

    def string(self) -> bytes:
        size = self.number("Q")
        self.skip(size, 1)
        return self.content[self.place - size : self.place]

    def field(self) -> None:
        key = self.string()
        kind = self.number("I")
        if kind == _ARRAY:
            self.array()
        elif key == _ALIGNMENT and kind == _UINT32:
            self.alignment = self.number("I")
        else:
            self.value(kind)

    def array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind == _ARRAY:
            raise CheckpointError(f"{self.name} has metadata of lists in lists, which no model needs")
        self.check_room(count, 8 if kind == _STRING else 1, "values")
        self.num_elements += count
        if self.num_elements > MAX_ELEMENTS:
            raise CheckpointError(
                f"{self.name} has lists of {self.num_elements} values and more in its metadata; most is {MAX_ELEMENTS}"
            )
        if kind == _STRING:
            for _ in range(count):
                self.string()
        else:
            self.skip(count, self.size_of(kind))

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        else:
            self.skip(1, self.size_of(kind))

    def size_of(self, kind: int) -> int:
        if kind not in _SIZES:
            raise CheckpointError(f"{self.name} has metadata of the unknown type {kind}")
        return _SIZES[kind]

    def tensor(self) -> None:
        name = self.string().decode(errors="replace")
        if (dimensions := self.number("I")) > MAX_DIMENSIONS:
            raise CheckpointError(f"{self.name} has a tensor of {dimensions} dimensions; most is {MAX_DIMENSIONS}")
        shape = [self.number("Q") for _ in range(dimensions)]
        if (kind := self.number("I")) not in self.tensor_types:
            raise CheckpointError(f"{self.name} has a tensor of the unknown type {kind}")
        block, num_bytes = self.tensor_types[kind]
        begin = self.number("Q")
        self.tensors.append(_Place(begin, begin + prod(shape) * num_bytes // block, name))

    def check_places(self) -> None:
        """Of the tensors, once all were walked through."""
        if self.alignment < 1 or self.alignment & (self.alignment - 1):
            raise CheckpointError(f"{self.name} has general.alignment {self.alignment}; it must be a power of two")
        first, last = -(-self.place // self.alignment) * self.alignment, 0
        for tensor in sorted(self.tensors):
            problem = None
            if tensor.begin % self.alignment:
                problem = f"which is no multiple of its alignment {self.alignment}"
            elif tensor.begin < last:
                problem = "inside of another one"
            elif first + tensor.end > len(self.content):
                problem = f"{tensor.end - tensor.begin} bytes long, and its data end at {len(self.content) - first}"
            if problem:
                raise CheckpointError(
                    f"{self.name} is truncated or no GGUF file: the tensor {tensor.name:.60} lies at byte "
                    f"{tensor.begin} of its data, {problem}"
                )
            last = tensor.end
