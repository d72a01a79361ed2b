"""The decoder as an ONNX graph for ONNX Runtime: its CPU kernels, and in fp16 its CUDA kernels.

Inputs of a step, `batch` sequences of equally many tokens (more than one token a sequence only when batch is 1):
    token_ids      int32 [rows]    rows = batch * tokens a sequence, sequence after sequence
    last_position  int32 [batch]   position of each sequence's last token
    total_length   int32 []        the largest of them, plus 1
    logit_rows     int32 [num_logits]
    past_key_i, past_value_i    [batch, num_kv_heads, cache_length, head_size], float32 or, in fp16, float16
and of a decoder that takes images:
    positions      int32 [3, rows]     time, row and column of each token
    image_features float32 [num_features, feature_size]    a row for each token id below 0, in their order
Outputs: logits [num_logits, vocab_size] float32; present_key_i, present_value_i, to be bound to the buffers of their
pasts: GroupQueryAttention then writes the new keys and values in place and copies nothing.

fp16 is 16 bits only where weights or caches are read: the residual stream, norms and gating are float32, so that
nothing adds up to an overflow. Its caches are one position longer than a slot: there a GPU computes the rows of idle
slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.core import TokenIds

from autoglm_export.checkpoint.weights import Array, CountedWeights, weight_shapes
from autoglm_export.errors import InvalidOption
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.calibration import Calibration
from autoglm_export.quantize.rotation import rotated
from autoglm_export.reproducible import kernels
from autoglm_export.runtime_shapes import check_shape
from autoglm_export.runtimes import Progress, image_details, no_progress

from .graph import CONTRIB, MODEL_FILE, OnnxGraph
from .images import ImageInputs, SectionedRope
from .linear import FLOAT, HALF, DType, FloatLinears, Int8Linears, Linears, Rows, finished

_PRECISIONS = ("fp32", "fp16", "int8")


class OnnxOps:
    """`Ops` over values of an ONNX graph."""

    def __init__(
        self,
        graph: OnnxGraph,
        spec: ModelSpec,
        weights: Mapping[str, Array],
        linears: Linears,
        *,
        cache_dtype: DType,
        cache_length: int,
    ) -> None:
        self._graph, self._spec, self._weights, self._linears = graph, spec, weights, linears
        self._cache_dtype, self._cache_length = cache_dtype, cache_length
        self._inputs()
        self._images = ImageInputs(graph, spec) if spec.takes_images else None
        self._rope = self._rope_tables() if self._images is None else self._sectioned_rope(self._images)
        self._batched_shapes: dict[int, str] = {}

    def embed(self, weight: str) -> Rows:
        if self._images is None:
            return self._linears.embed(weight, "token_ids")
        rows = finished(self._graph, self._linears.embed(weight, self._images.embedded_ids()))
        return Rows(self._images.with_features(rows))

    def rms_norm(self, x: Rows, weight: str) -> Rows:
        inputs = finished(self._graph, x), self._graph.tensor(weight, self._weights[weight])
        return Rows(
            self._graph.op("SimplifiedLayerNormalization", *inputs, axis=-1, epsilon=self._spec.norm_eps, stash_type=1)
        )

    def add_rms_norm(self, x: Rows, delta: Rows, weight: str) -> tuple[Rows, Rows]:
        scale = self._graph.tensor(weight, self._weights[weight])
        inputs = [finished(self._graph, x), finished(self._graph, delta), scale]
        op = "SkipSimplifiedLayerNormalization"
        normed, _, _, total = self._graph.node(op, inputs, domain=CONTRIB, num_outputs=4, epsilon=self._spec.norm_eps)
        return Rows(total), Rows(normed)

    def linear(self, x: Rows, *layers: str) -> Rows:
        return self._linears.linear(x, layers)

    def attention(self, qkv: Rows, layer: int, query_norm: str | None, key_norm: str | None) -> Rows:
        spec, graph = self._spec, self._graph
        sources = self._sources(finished(graph, qkv, self._cache_dtype), query_norm, key_norm)
        tables = [] if isinstance(self._rope, SectionedRope) else self._rope
        pasts = [self._cache("past", kind, layer) for kind in ("key", "value")]
        attended = f"attended_{layer}"
        graph.named(
            "GroupQueryAttention",
            [*sources, *pasts, "last_position", "total_length", *tables],
            [attended, *(self._cache("present", kind, layer) for kind in ("key", "value"))],
            domain=CONTRIB,
            num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=int(bool(tables)),
            rotary_interleaved=int(spec.rope.interleaved),
        )
        rows = graph.op("Reshape", attended, self._shape(-1, spec.num_heads * spec.head_size))
        return Rows(rows, dtype=self._cache_dtype)

    def swiglu(self, gate: Rows, up: Rows) -> Rows:
        silu = self._graph.op("QuickGelu", finished(self._graph, gate), domain=CONTRIB, alpha=1.0)
        # What multiplies `up` by row may wait until after the next product: everything between is linear in it.
        plain = finished(self._graph, dataclasses.replace(up, factor=None))
        return Rows(self._graph.op("Mul", silu, plain), up.factor, spiky=True)

    def add_features(self, x: Rows, part: int) -> Rows:
        assert self._images is not None, "a decoder without images has no features"
        return Rows(self._images.with_more_features(finished(self._graph, x), part))

    def select_rows(self, x: Rows) -> Rows:
        return Rows(self._graph.op("Gather", finished(self._graph, x, x.dtype), "logit_rows"), dtype=x.dtype)

    def logits(self, x: Rows, weight: str) -> None:
        self._graph.output("logits", np.float32, ["num_logits", self._spec.vocab_size])
        self._linears.logits(x, weight, "logits")

    def _inputs(self) -> None:
        self._graph.input("token_ids", np.int32, ["rows"])
        self._graph.input("last_position", np.int32, ["batch"])
        self._graph.input("total_length", np.int32, [])
        self._graph.input("logit_rows", np.int32, ["num_logits"])

    def _cache(self, when: str, kind: str, layer: int) -> str:
        shape: list[int | str] = ["batch", self._spec.num_kv_heads, self._cache_length, self._spec.head_size]
        declare = self._graph.input if when == "past" else self._graph.output
        return declare(f"{when}_{kind}_{layer}", self._cache_dtype, shape)

    def _tables(self) -> dict[str, Array]:
        """[cache_length, rope dims / 2] each, of the caches' type."""
        sines, cosines = self._spec.rope.sines_and_cosines(self._cache_length)
        return {"rope_cos": cosines.astype(self._cache_dtype), "rope_sin": sines.astype(self._cache_dtype)}

    def _rope_tables(self) -> list[str]:
        return [self._graph.tensor(name, table) for name, table in self._tables().items()]

    def _sectioned_rope(self, images: ImageInputs) -> SectionedRope:
        return SectionedRope(self._graph, self._spec.rope, self._tables(), images.positions())

    def _sources(self, packed: str, query_norm: str | None, key_norm: str | None) -> list[str]:
        """Queries, keys and values, batch first; packed where GroupQueryAttention does the rest. Its own norms are not
        there on a CPU."""
        spec, graph = self._spec, self._graph
        counts = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        has_norms = query_norm is not None and key_norm is not None
        if not has_norms and not isinstance(self._rope, SectionedRope):
            return [self._batch_first(packed, sum(counts)), "", ""]
        widths = graph.tensor("head_widths", np.array(counts, np.int64) * spec.head_size)
        parts = graph.node("Split", [packed, widths], num_outputs=3, axis=1)
        for i, norm in enumerate((query_norm, key_norm)):
            if norm is not None:
                parts[i] = self._normed_heads(parts[i], norm)
        parts = [self._batch_first(part, count) for part, count in zip(parts, counts, strict=True)]
        if isinstance(self._rope, SectionedRope):
            parts[:2] = [self._rope.rotated(parts[0], counts[0]), self._rope.rotated(parts[1], counts[1])]
        return parts

    def _normed_heads(self, rows: str, norm: str) -> str:
        heads = self._graph.op("Reshape", rows, self._shape(-1, self._spec.head_size))
        normed = self.rms_norm(Rows(heads, dtype=self._cache_dtype), norm)
        return finished(self._graph, normed, self._cache_dtype)

    def _batch_first(self, x: str, num_heads: int) -> str:
        """[rows, num_heads * head_size] -> [batch, tokens a sequence, num_heads * head_size]"""
        if num_heads not in self._batched_shapes:
            batch = self._graph.op("Shape", "last_position")
            rest = self._shape(-1, num_heads * self._spec.head_size)
            self._batched_shapes[num_heads] = self._graph.op("Concat", batch, rest, axis=0)
        return self._graph.op("Reshape", x, self._batched_shapes[num_heads])

    def _shape(self, *sizes: int) -> str:
        return self._graph.tensor(f"shape_{sizes}", np.array(sizes, np.int64))


def write_onnx(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    *,
    precision: str,
    num_slots: int,
    max_length: int,
    prefill_chunk: int,
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write the graph and its weights into `folder`; returns the manifest's `runtime_details`.

    int8 weights are fitted to `texts`; without any, each is rounded for itself.
    `num_slots` and `prefill_chunk` bound what a runner asks of the graph; the graph itself takes any.
    Raises InvalidOption for an unknown precision, UnsupportedModel for what the kernels lack.
    """
    if precision not in _PRECISIONS:
        raise InvalidOption(f"the precision {precision!r} is not known; allowed are {', '.join(_PRECISIONS)}")
    check_shape(spec, "onnx", precision)
    cache_dtype, cache_length = (HALF, max_length + 1) if precision == "fp16" else (FLOAT, max_length)
    stage = f"write graph ({kernels().description})" if precision == "int8" else "write graph"
    with OnnxGraph(folder) as graph:
        if precision == "int8":
            spec, weights = rotated(spec, weights)
        calibration = Calibration(spec, weights, texts) if precision == "int8" and texts else None
        read = CountedWeights(weight_shapes(spec), weights, progress, stage)
        linears: Linears = (
            Int8Linears(graph, read, calibration) if precision == "int8" else FloatLinears(graph, read, cache_dtype)
        )
        ops = OnnxOps(graph, spec, read, linears, cache_dtype=cache_dtype, cache_length=cache_length)
        build_decoder(spec, ops)
        graph.save()
    progress(stage, 1.0)
    return {
        "model": MODEL_FILE,
        "cache_dtype": cache_dtype.name,
        "cache_length": cache_length,
        **image_details(spec),
    }
