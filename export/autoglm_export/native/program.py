"""The native decoder's program and weights as files. The structures are those of `native/csrc/program.h`; what the
engine checks of them is in its own `native.program`."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from autoglm_engine.runners.native.program import (
    IMAGE_PROGRAM_FORMAT,
    LANES,
    PANEL,
    PROGRAM_FORMAT,
    Buffer,
    Code,
    padded,
)

from autoglm_export.checkpoint.weights import prepared
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.rounding import round_columns
from autoglm_export.reproducible import kernels

NONE = -1
ALIGNMENT = 64  # bytes: a cache line, and a vector
GROUP = 4  # int8 weights of a column side by side
WEIGHT_ZERO = 128  # weights are stored as unsigned bytes around this
MAX_MIXED = 32

Floats = npt.NDArray[np.float32]
Layer = tuple[Floats, Floats | None]  # weight [outputs, inputs] and bias


class Epilogue(IntEnum):
    STORE = 0
    ADD = 1
    SWIGLU = 2


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the program; the fields are explained in `native/csrc/program.h`."""

    code: Code
    selected: bool
    source: Buffer = Buffer.RESIDUAL
    target: Buffer = Buffer.RESIDUAL
    inputs: int = 0
    columns: int = 0
    weight: int = NONE
    scales: int = NONE
    bias: int = NONE
    detail: int = 0


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Where a packed matrix lies in the weights file, and its padded size."""

    weight: int
    scales: int
    bias: int
    inputs: int
    columns: int


def buffer_widths(spec: ModelSpec) -> dict[Buffer, int]:
    """Floats a row of each buffer, padded to whole panels."""
    return {buffer: padded(size) for buffer, size in buffer_sizes(spec).items()}


def buffer_sizes(spec: ModelSpec) -> dict[Buffer, int]:
    """The values of a row of each buffer, without its padding."""
    qkv = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size
    return {
        Buffer.RESIDUAL: spec.hidden_size,
        Buffer.PROJECTED: max(qkv, spec.hidden_size),
        Buffer.ATTENDED: spec.num_heads * spec.head_size,
        Buffer.HIDDEN: spec.intermediate_size,
        Buffer.LOGITS: spec.vocab_size,
    }


def encode_program(spec: ModelSpec, rope_frequencies: int, operations: list[Operation]) -> npt.NDArray[np.int64]:
    """Header and operations as one flat array."""
    widths = buffer_widths(spec)
    epsilon = int(np.float64(spec.norm_eps).view(np.int64))
    shape = (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_size, spec.rope.dims)
    quantised = max(widths[name] for name in (Buffer.RESIDUAL, Buffer.ATTENDED, Buffer.HIDDEN))
    version = IMAGE_PROGRAM_FORMAT if spec.takes_images else PROGRAM_FORMAT
    header = [version, len(operations), *shape, rope_frequencies, epsilon, quantised]
    rows = [*header, *(widths[name] for name in Buffer), *spec.rope.sections]
    for operation in operations:
        rows.extend(int(value) for value in astuple(operation))
    return np.array(rows, np.int64)


def quantise_columns(
    weight: Floats, inputs: Floats | None = None, name: str = "a matrix"
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """`[columns, inputs]` -> bytes around WEIGHT_ZERO, and the scale of each column; see `round_columns`."""
    values, scales = round_columns(weight, inputs, name)
    stored = values.view(np.uint8)
    stored ^= np.uint8(WEIGHT_ZERO)
    return stored, scales


def mixed_vectors(inputs: int) -> int:
    """How many vectors of LANES are mixed with each other in rows of a padded width: a power of two that divides
    them."""
    vectors = inputs // LANES
    return min(vectors & -vectors, MAX_MIXED)


def mix_columns(weight: Floats) -> Floats:
    """The inverse of the runtime's mixing, on `[columns, inputs]`: x . w stays what it was."""
    block = mixed_vectors(weight.shape[1])
    return kernels().mix(weight, block, LANES, np.float32(1 / block))


def pack_panels(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`[columns, inputs]`, both padded -> `[columns / 32, inputs / 4, 32, 4]`."""
    columns, inputs = values.shape
    groups = values.view(np.uint32).reshape(columns // PANEL, PANEL, inputs // GROUP)
    packed = np.ascontiguousarray(groups.transpose(0, 2, 1))
    return packed.view(np.uint8).reshape(columns // PANEL, inputs // GROUP, PANEL, GROUP)


def interleave(gate: Floats, up: Floats) -> Floats:
    """Rows of both, 16 of `gate` and 16 of `up` in turn: a panel then holds both sides of its products."""
    blocks = [array.reshape(-1, LANES, *array.shape[1:]) for array in (gate, up)]
    stacked: Floats = np.stack(blocks, axis=1)
    return stacked.reshape(-1, *gate.shape[1:])


def _side_by_side(parts: list[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def pack_side_by_side(parts: list[Layer]) -> Layer:
    weight = _side_by_side([weight for weight, _ in parts])
    if all(bias is None for _, bias in parts):
        return weight, None
    return weight, np.concatenate(
        [np.zeros(len(weight), np.float32) if bias is None else bias for weight, bias in parts]
    )


def pack_gated(parts: list[Layer]) -> Layer:
    """Gate and up, 16 columns of each in turn."""
    (gate, gate_bias), (up, up_bias) = parts
    weight = interleave(_pad_rows(gate), _pad_rows(up))
    if gate_bias is None or up_bias is None:
        return weight, None
    return weight, interleave(_pad_rows(gate_bias), _pad_rows(up_bias))


def _pad_rows(array: Floats) -> Floats:
    return _pad(array, padded(len(array)), *array.shape[1:])


def _pad(array: Floats, *shape: int) -> Floats:
    """Zeros behind each axis, up to `shape`; the array itself where it has that shape."""
    widths = [(0, wanted - size) for wanted, size in zip(shape, array.shape, strict=True)]
    return np.pad(array, widths) if array.shape != shape else array


@dataclass(slots=True)
class WeightsFile:
    """Writes aligned arrays one after another; each `add` returns the array's offset in bytes."""

    stream: BinaryIO
    end: int = field(default=0, init=False)

    def add(self, array: npt.NDArray[np.generic]) -> int:
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        self.stream.write(b"\0" * (offset - self.end))
        self.stream.write(np.ascontiguousarray(array).data)
        self.end = offset + array.nbytes
        return offset

    def add_row(self, values: Floats) -> int:
        """A vector, padded with zeros to whole panels."""
        return self.add(np.pad(values.astype(np.float32), (0, padded(values.size) - values.size)))

    def add_matrix(
        self,
        weight: Floats,
        bias: Floats | None,
        *,
        mixed: bool = False,
        inputs: Floats | None = None,
        name: str = "a matrix",
    ) -> PackedMatrix:
        """Quantise and pack `weight` `[columns, inputs]`; `mixed`: for rows that are mixed before they are quantised.

        `inputs` `[tokens, inputs]`: a sample of those rows, not mixed yet.
        """
        weight = _pad(weight, padded(weight.shape[0]), padded(weight.shape[1]))
        inputs = None if inputs is None else _pad(inputs, len(inputs), weight.shape[1])
        if mixed:
            weight, inputs = mix_columns(weight), None if inputs is None else mix_columns(inputs)
        values, scales = quantise_columns(weight, inputs, name)
        return PackedMatrix(
            weight=self.add(pack_panels(values)),
            scales=self.add(scales),
            bias=NONE if bias is None else self.add_row(prepared(f"the bias of {name}", bias)),
            inputs=weight.shape[1],
            columns=weight.shape[0],
        )
