"""Reads the native runtime's program, and checks that it fits its manifest and its weights before anything runs it.

The library follows the program without a look to the left or right: a number that leads out of a buffer or of the
weights would end the process. The fields are those of `native/csrc/program.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest

PROGRAM_FORMAT = 3
IMAGE_PROGRAM_FORMAT = 4  # of a decoder that takes images: its header ends with the rope's sections
PANEL = 32  # columns of a matrix, and the multiple of every padded width
LANES = 16
_ALIGNMENT = 64
_FLOAT, _DOUBLE = 4, 8  # bytes
_NONE = -1
_NUM_BUFFERS = 5
_HEADER = (
    "format",
    "num_operations",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "rope_dims",
    "rope_frequencies",
    "norm_epsilon",
    "quantised_width",
)
HEADER_FIELDS = len(_HEADER) + _NUM_BUFFERS
_NUM_SECTIONS = 3
_MAX_WIDTH = 1 << 26

Program = npt.NDArray[np.int64]


class Code(IntEnum):
    EMBED = 0
    NORM_QUANTISE = 1
    QUANTISE = 2
    LINEAR = 3
    ADD_NORM = 4
    APPEND = 5
    ATTEND = 6
    SELECT = 7
    ADD_FEATURES = 8


class Buffer(IntEnum):
    RESIDUAL = 0
    PROJECTED = 1
    ATTENDED = 2
    HIDDEN = 3
    LOGITS = 4


class Operation(NamedTuple):
    """A row of the program. Offsets are in the weights, -1 for none."""

    code: int
    selected: int
    source: int
    target: int
    inputs: int
    columns: int
    weight: int
    scales: int
    bias: int
    detail: int


OPERATION_FIELDS = len(Operation._fields)
_SWIGLU = 2
_QUANTISED = (Buffer.RESIDUAL, Buffer.ATTENDED, Buffer.HIDDEN)


def read_program(path: Path, manifest: Manifest, weight_bytes: int) -> Program:
    """Raises ArtifactError, saying what does not fit. `weight_bytes`: the size of the weights file."""
    size = path.stat().st_size
    if size % _DOUBLE or size < _header_fields(manifest) * _DOUBLE:
        raise ArtifactError(f"{path} has {size} bytes, which make no program; export it again")
    program = np.fromfile(path, np.int64)
    if misfit := next(_Check(program, manifest, weight_bytes).misfits(), None):
        raise ArtifactError(f"{path} does not fit its artifact: {misfit}; export it again")
    return program


def feature_size(manifest: Manifest) -> int:
    """Numbers of a row of an image's features; 0: the artifact takes none."""
    size: int = manifest.runtime_details.get("feature_size", 0)
    return size


def num_feature_parts(program: Program, manifest: Manifest) -> int:
    """Of a row of features: the first is a token's embedding, each other is added in one operation."""
    operations = program[_header_fields(manifest) :].reshape(-1, OPERATION_FIELDS)
    return 1 + int(np.count_nonzero(operations[:, 0] == Code.ADD_FEATURES))


def padded(size: int) -> int:
    return -(-size // PANEL) * PANEL


def _header_fields(manifest: Manifest) -> int:
    return HEADER_FIELDS + (_NUM_SECTIONS if feature_size(manifest) else 0)


class _Check:
    def __init__(self, program: Program, manifest: Manifest, weight_bytes: int) -> None:
        self._program, self._manifest, self._weight_bytes = program, manifest, weight_bytes
        self._num_fields = _header_fields(manifest)
        self._header: dict[str, int] = dict(zip(_HEADER, program.tolist(), strict=False))
        self._widths: list[int] = program[len(_HEADER) : HEADER_FIELDS].tolist()
        self._sections: list[int] = program[HEADER_FIELDS : self._num_fields].tolist()
        self._parts_left = set[int]()  # of features, which operations are yet to add

    def misfits(self) -> Iterator[str]:
        """Each in a few words; a later one is looked for only where there is none before it."""
        yield from self._header_misfits()
        yield from self._width_misfits()
        yield from self._feature_misfits()
        rows = self._program[self._num_fields :].reshape(-1, OPERATION_FIELDS).tolist()
        for number, row in enumerate(rows):
            for misfit in self._operation_misfits(Operation(*row)):
                yield f"operation {number} {misfit}"

    def _header_misfits(self) -> Iterator[str]:
        header, cache = self._header, self._manifest.cache
        told = {
            "format": IMAGE_PROGRAM_FORMAT if self._sections else PROGRAM_FORMAT,
            "num_operations": (len(self._program) - self._num_fields) / OPERATION_FIELDS,
            "num_layers": cache.num_layers,
            "num_kv_heads": cache.num_kv_heads,
            "head_size": cache.head_size,
        }
        for name, expected in told.items():
            if header[name] != expected:
                yield f"it has {name} {header[name]}, and {expected:g} is right"
        if cache.head_size % 2:
            yield f"its heads have {cache.head_size} numbers, and keys are kept in pairs"
        if header["num_heads"] < 1 or header["num_heads"] % cache.num_kv_heads:
            yield f"{header['num_heads']} heads do not share {cache.num_kv_heads} of keys"
        if not 0 <= header["rope_dims"] <= cache.head_size or header["rope_dims"] % 2:
            yield f"it turns {header['rope_dims']} of {cache.head_size} dimensions"
        if self._sections and (min(self._sections) < 0 or sum(self._sections) != header["rope_dims"] // 2):
            yield f"its sections {self._sections} do not cover {header['rope_dims'] // 2} pairs"
        epsilon = float(np.int64(header["norm_epsilon"]).view(np.float64))
        if not 0 < epsilon < 1:
            yield f"its norms add {epsilon:g}"
        if not self._holds(header["rope_frequencies"], header["rope_dims"] // 2 * _DOUBLE):
            yield "its frequencies lie outside of the weights"

    def _width_misfits(self) -> Iterator[str]:
        header = self._header
        for buffer, width in zip(Buffer, self._widths, strict=True):
            if not 0 < width <= _MAX_WIDTH or width % PANEL:
                yield f"rows of the buffer {buffer.name.lower()} have {width} numbers"
        if self._widths[Buffer.LOGITS] != padded(self._manifest.vocab_size):
            yield f"it has {self._widths[Buffer.LOGITS]} logits, the vocabulary {self._manifest.vocab_size} tokens"
        if header["quantised_width"] != max(self._widths[name] for name in _QUANTISED):
            yield f"its quantised rows have {header['quantised_width']} numbers"

    def _feature_misfits(self) -> Iterator[str]:
        size, num_parts = feature_size(self._manifest), num_feature_parts(self._program, self._manifest)
        self._parts_left = set(range(1, num_parts))
        if num_parts > 1 and not self._sections:
            yield "it adds features, and takes no images"
        if self._sections and (size % num_parts or self._widths[Buffer.RESIDUAL] != padded(size // num_parts)):
            parts = f" in {num_parts} parts" if num_parts > 1 else ""
            yield f"its stream has {self._widths[Buffer.RESIDUAL]} numbers, features {size}{parts}"

    def _operation_misfits(self, op: Operation) -> Iterator[str]:
        if op.code not in set(Code) or op.selected not in (0, 1) or not {op.source, op.target} <= set(Buffer):
            yield "is none that this engine knows"
            return
        uses_logits = Buffer.LOGITS in (op.source, op.target)
        if uses_logits and (op.code != Code.LINEAR or not op.selected or op.source == Buffer.LOGITS):
            yield "works on logits of rows that have none"
        yield from self._content_misfits(op, self._widths[op.source], self._widths[op.target])

    def _content_misfits(self, op: Operation, read: int, written: int) -> Iterator[str]:
        """`read` and `written`: the widths of its buffers."""
        match Code(op.code):
            case Code.EMBED:
                yield from self._matrix(op.weight, op.scales, _NONE, op.inputs, self._widths[Buffer.LOGITS])
                if op.inputs > written:
                    yield "is too wide for its buffer"
            case Code.NORM_QUANTISE:
                yield from self._quantise(read, op.bias, op.detail)
                yield from self._norm(op.inputs, read, op.weight)
            case Code.QUANTISE:
                yield from self._quantise(read, op.bias, op.detail)
                if not 0 < op.inputs <= read:
                    yield f"reads {op.inputs} of {read} numbers"
            case Code.LINEAR:
                yield from self._linear(op, written)
            case Code.ADD_NORM:
                yield from self._norm(op.inputs, min(read, written), op.weight)
                if written > read:
                    yield "adds a buffer to a wider one"
            case Code.APPEND:
                yield from self._append(op, read)
            case Code.ATTEND:
                yield from self._heads(op.detail, written, self._header["num_heads"])
            case Code.SELECT:
                return
            case Code.ADD_FEATURES:
                yield from self._add_features(op)

    def _linear(self, op: Operation, written: int) -> Iterator[str]:
        yield from self._matrix(op.weight, op.scales, op.bias, op.inputs, op.columns)
        if op.detail not in (0, 1, _SWIGLU):
            yield "ends in a way that this engine does not know"
        if (op.columns // 2 if op.detail == _SWIGLU else op.columns) > written:
            yield "is too wide for its buffer"

    def _append(self, op: Operation, read: int) -> Iterator[str]:
        cache = self._manifest.cache
        yield from self._heads(op.detail, read, self._header["num_heads"] + 2 * cache.num_kv_heads)
        for norm in (op.weight, op.scales):
            if norm != _NONE and not self._holds(norm, cache.head_size * _FLOAT):
                yield "has a norm outside of the weights"

    def _add_features(self, op: Operation) -> Iterator[str]:
        if op.detail not in self._parts_left:
            yield f"adds part {op.detail} of features, which is none or was added before"
        self._parts_left.discard(op.detail)
        if op.selected or op.target != Buffer.RESIDUAL:
            yield "adds features to other rows than the stream's"

    def _matrix(self, weight: int, scales: int, bias: int, inputs: int, columns: int) -> Iterator[str]:
        if not 0 < inputs <= self._header["quantised_width"] or inputs % PANEL:
            yield f"multiplies rows of {inputs} numbers"
        elif not 0 < columns <= _MAX_WIDTH or columns % PANEL:
            yield f"has {columns} columns"
        elif not (self._holds(weight, inputs * columns) and self._holds(scales, columns * _FLOAT)):
            yield "has a matrix outside of the weights"
        elif bias != _NONE and not self._holds(bias, columns * _FLOAT):
            yield "has a bias outside of the weights"

    def _quantise(self, width: int, shift: int, block: int) -> Iterator[str]:
        if width > self._header["quantised_width"]:
            yield "is too wide for the quantised rows"
        if block < 1 or (width // LANES) % block or block & (block - 1):
            yield f"mixes blocks of {block} vectors"
        if shift != _NONE and not self._holds(shift, width * _FLOAT):
            yield "has a shift outside of the weights"

    def _norm(self, size: int, width: int, weight: int) -> Iterator[str]:
        if not 0 < size <= width:
            yield f"norms {size} of {width} numbers"
        if not self._holds(weight, width * _FLOAT):
            yield "has a norm outside of the weights"

    def _heads(self, layer: int, width: int, heads: int) -> Iterator[str]:
        if not 0 <= layer < self._header["num_layers"]:
            yield f"works on layer {layer} of {self._header['num_layers']}"
        if heads * self._header["head_size"] > width:
            yield f"has {heads} heads, too many for its buffer"

    def _holds(self, offset: int, size: int) -> bool:
        return offset >= 0 and offset % _ALIGNMENT == 0 and offset + size <= self._weight_bytes
