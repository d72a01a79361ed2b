"""The decoder as a program for the native CPU runtime: int8 weights, and a library compiled for each class of CPUs.

Operators return expressions; nothing is issued before an expression is used, and how it is used decides what is fused:
a norm becomes part of the quantisation before a matrix product, a product is added to the residual stream where it is
stored, and gate and up become one product that leaves silu(gate) * up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import TokenIds
from autoglm_engine.runners.native.program import IMAGE_PROGRAM_FORMAT, PROGRAM_FORMAT, Buffer, Code

from autoglm_export.checkpoint.weights import CountedWeights, LayerCache, prepared, weight_shapes
from autoglm_export.errors import InvalidOption
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.ops import Ops
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.calibration import Calibration, Centered
from autoglm_export.quantize.rotation import rotated
from autoglm_export.reproducible import kernels
from autoglm_export.runtime_shapes import check_shape
from autoglm_export.runtimes import Progress, image_details, no_progress

from .libraries import Libraries
from .program import (
    NONE,
    Epilogue,
    Layer,
    Operation,
    PackedMatrix,
    WeightsFile,
    buffer_sizes,
    buffer_widths,
    encode_program,
    mixed_vectors,
    pack_gated,
    pack_side_by_side,
)

WEIGHTS_NAME, PROGRAM_NAME = "weights.bin", "program.bin"
PRECISIONS = ("int8",)
MAX_LOGITS_PER_SPAN = 17  # of a runner's own choice; the memory of rows that are never asked for is never touched

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows that lie in a buffer; `selected`: only those whose logits are wanted."""

    buffer: Buffer
    selected: bool


@dataclass(frozen=True, slots=True, eq=False)
class Normed:
    source: Rows | Product
    weight: str


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """`features`: the part of images' features that is added to it."""

    source: Rows | Normed
    layers: tuple[str, ...]
    features: int | None = None


Expression = Rows | Normed | Product


class NativeOps(Ops[Expression]):
    """Records operations; weights are written to the file when the first operation needs them."""

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Array], file: WeightsFile, calibration: Calibration | None = None
    ) -> None:
        self.operations: list[Operation] = []
        self._spec, self._weights, self._file, self._calibration = spec, weights, file, calibration
        self._tables: dict[str, PackedMatrix] = {}
        self._quantised: Expression | None = None  # what the quantised rows hold
        self._sample = Centered()  # of those rows

    def embed(self, weight: str) -> Expression:
        table = self._table(weight)
        self._emit(Code.EMBED, False, inputs=table.inputs, weight=table.weight, scales=table.scales)
        return Rows(Buffer.RESIDUAL, selected=False)

    def rms_norm(self, x: Expression, weight: str) -> Expression:
        assert not isinstance(x, Normed), "a norm of a norm"
        return Normed(x, weight)

    def add_rms_norm(self, x: Expression, delta: Expression, weight: str) -> tuple[Expression, Expression]:
        residual = _rows(x)
        assert residual.buffer is Buffer.RESIDUAL
        if isinstance(delta, Normed):
            assert isinstance(delta.source, Product)
            self._multiply(delta.source, Buffer.PROJECTED, Epilogue.STORE)
            norm, size = self._file.add_row(self._weights[delta.weight]), self._spec.hidden_size
            self._emit(Code.ADD_NORM, residual.selected, Buffer.PROJECTED, Buffer.RESIDUAL, inputs=size, weight=norm)
        else:
            assert isinstance(delta, Product)
            self._multiply(delta, Buffer.RESIDUAL, Epilogue.ADD)
            if delta.features is not None:
                self._emit(Code.ADD_FEATURES, residual.selected, target=Buffer.RESIDUAL, detail=delta.features)
        return residual, Normed(residual, weight)

    def linear(self, x: Expression, *layers: str) -> Expression:
        assert not isinstance(x, Product), "a product of a product"
        return Product(x, layers)

    def attention(self, qkv: Expression, layer: int, query_norm: str | None, key_norm: str | None) -> Expression:
        assert isinstance(qkv, Product)
        self._multiply(qkv, Buffer.PROJECTED, Epilogue.STORE)
        norms = [NONE if name is None else self._file.add_row(self._head_norm(name)) for name in (query_norm, key_norm)]
        self._emit(Code.APPEND, False, Buffer.PROJECTED, weight=norms[0], scales=norms[1], detail=layer)
        self._emit(Code.ATTEND, False, target=Buffer.ATTENDED, detail=layer)
        return Rows(Buffer.ATTENDED, selected=False)

    def swiglu(self, gate: Expression, up: Expression) -> Expression:
        assert isinstance(gate, Product) and isinstance(up, Product) and gate.source is up.source
        self._multiply(Product(gate.source, gate.layers + up.layers), Buffer.HIDDEN, Epilogue.SWIGLU)
        return Rows(Buffer.HIDDEN, _is_selected(gate))

    def add_features(self, x: Expression, part: int) -> Expression:
        assert isinstance(x, Product), "features are added to what is added to the residual stream"
        return dataclasses.replace(x, features=part)

    def select_rows(self, x: Expression) -> Expression:
        rows = _rows(x)
        self._emit(Code.SELECT, False, target=rows.buffer)
        return Rows(rows.buffer, selected=True)

    def logits(self, x: Expression, weight: str) -> None:
        assert isinstance(x, Normed)
        self._quantise(x, weight, mixed=False)  # an embedding that is also the head is not mixed
        bias = self._sample.bias(self._weights[weight], None)
        matrix = self._table(weight, self._sample.rows)
        if bias is not None:
            matrix = dataclasses.replace(matrix, bias=self._file.add_row(prepared(f"the bias of {weight}", bias)))
        self._multiply_packed(matrix, x, Buffer.LOGITS, Epilogue.STORE)

    def _emit(
        self,
        code: Code,
        selected: bool,
        source: Buffer = Buffer.RESIDUAL,
        target: Buffer = Buffer.RESIDUAL,
        **fields: int,
    ) -> None:
        self.operations.append(Operation(code, selected, source, target, **fields))

    def _quantise(self, x: Rows | Normed, reader: str, *, mixed: bool) -> None:
        """See that the quantised rows hold `x`, less what the layer `reader` reads on average."""
        if self._quantised is x:
            return
        if self._calibration:
            self._sample = Centered.of(self._calibration.inputs(reader))
        shift = NONE if self._sample.shift is None else self._file.add_row(self._sample.shift)
        rows = _rows(x.source) if isinstance(x, Normed) else x
        block = mixed_vectors(buffer_widths(self._spec)[rows.buffer]) if mixed else 1
        code, weight = Code.QUANTISE, NONE
        if isinstance(x, Normed):
            code, weight = Code.NORM_QUANTISE, self._file.add_row(self._weights[x.weight])
        size = buffer_sizes(self._spec)[rows.buffer]
        self._emit(code, rows.selected, rows.buffer, inputs=size, weight=weight, bias=shift, detail=block)
        self._quantised = x

    def _multiply(self, product: Product, target: Buffer, epilogue: Epilogue) -> None:
        # Normed rows are spread already by the rotation of the residual stream, where it applies.
        mixed = isinstance(product.source, Rows) or self._spec.sandwich_norm
        self._quantise(product.source, product.layers[0], mixed=mixed)
        parts = [self._matrix(name) for name in product.layers]
        pack = pack_gated if epilogue is Epilogue.SWIGLU else pack_side_by_side
        weight, bias = pack(parts)
        bias = self._sample.bias(weight, bias)
        name = " and ".join(product.layers)
        matrix = self._file.add_matrix(weight, bias, mixed=mixed, inputs=self._sample.rows, name=name)
        self._multiply_packed(matrix, product, target, epilogue)

    def _multiply_packed(self, matrix: PackedMatrix, x: Expression, target: Buffer, epilogue: Epilogue) -> None:
        self._emit(
            Code.LINEAR,
            _is_selected(x),
            target=target,
            inputs=matrix.inputs,
            columns=matrix.columns,
            weight=matrix.weight,
            scales=matrix.scales,
            bias=matrix.bias,
            detail=epilogue,
        )

    def _table(self, name: str, inputs: Array | None = None) -> PackedMatrix:
        """A matrix over the vocabulary, written once even if it is both embedding and output."""
        if name not in self._tables:
            self._tables[name] = self._file.add_matrix(self._weights[name], None, inputs=inputs, name=name)
        return self._tables[name]

    def _matrix(self, name: str) -> Layer:
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        if name.endswith((".query", ".key")):
            return self._rotatable(weight), None if bias is None else self._rotatable(bias)
        return weight, bias

    def _head_norm(self, name: str) -> Array:
        return self._rotatable(self._weights[name])

    def _rotatable(self, rows: Array) -> Array:
        """Rows of whole heads, ordered so that an interleaved rope becomes one of halves, and mixed sections follow
        each other.

        Scores do not change when queries and keys are reordered alike.
        """
        rope, head_size = self._spec.rope, self._spec.head_size
        if not (rope.interleaved or rope.mixed_sections):
            return rows
        pairs = np.arange(rope.dims).reshape((-1, 2) if rope.interleaved else (2, -1))
        halves = pairs.T if rope.interleaved else pairs
        order = np.concatenate([*halves[:, rope.pairs_by_axis], np.arange(rope.dims, head_size)])
        return rows.reshape(-1, head_size, *rows.shape[1:])[:, order].reshape(rows.shape)


def _rows(x: Expression) -> Rows:
    assert isinstance(x, Rows), f"{x} is not in a buffer"
    return x


def _is_selected(x: Expression) -> bool:
    return x.selected if isinstance(x, Rows) else _is_selected(x.source)


def write_native(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    *,
    precision: str = "int8",
    num_slots: int,
    max_length: int,
    prefill_chunk: int,
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write library, program and weights into `folder`; returns the manifest's `runtime_details`.

    Weights are fitted to `texts`; without any, each is rounded for itself.

    The program serves any number of slots and any length: they are the runner's to allocate.
    Raises InvalidOption for another precision than int8, UnsupportedModel for shapes that the kernels lack, ExportError
    without a working C++ compiler.
    """
    if precision not in PRECISIONS:
        raise InvalidOption(
            f"the native runtime has no precision {precision!r}; it computes in {', '.join(PRECISIONS)}"
        )
    check_shape(spec, "native", precision)
    with Libraries.building() as libraries:
        write_program(spec, weights, folder, texts, progress)
        progress("compile decoder", 0.0)
        built = libraries.write(folder)
        progress("compile decoder", 1.0)
    return {
        "program_format": IMAGE_PROGRAM_FORMAT if spec.takes_images else PROGRAM_FORMAT,
        "libraries": built,
        "library_sources": libraries.sources,
        "program": PROGRAM_NAME,
        "weights": WEIGHTS_NAME,
        "cache_dtype": "bfloat16",
        "max_logits_per_span": MAX_LOGITS_PER_SPAN,
        **image_details(spec),
    }


def write_program(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
) -> None:
    spec, weights = rotated(spec, weights)
    weights, stage = LayerCache(weights), f"quantise weights ({kernels().description})"
    with (folder / WEIGHTS_NAME).open("wb") as stream:
        file = WeightsFile(stream)
        calibration = Calibration(spec, weights, texts) if texts else None
        ops = NativeOps(spec, CountedWeights(weight_shapes(spec), weights, progress, stage), file, calibration)
        build_decoder(spec, ops)
        frequencies = file.add(spec.rope.inverse_frequencies()[list(spec.rope.pairs_by_axis)])
    progress(stage, 1.0)
    encode_program(spec, frequencies, ops.operations).tofile(folder / PROGRAM_NAME)
