"""The decoder as a TensorRT engine: one network, three optimisation profiles.

The engine's tensors (B sequences, S tokens of each, K positions that attention reads; row i of a decode step is slot
i):

    token_ids, position_ids   int32 [B, S]    position_ids: where each token stands in its slot
    write_indices             int32 [B]       the first cache position that the row writes; write_indices + S <=
                                              cache_length
    key_positions             int32 [K]       0 ... K - 1; beyond every position that counts, so K >= the longest row's
                                              end
    logit_indices             int32 [B, 1]    which of the S tokens gives the logits
    inverse_temperature       float32 [B, 1]  \\
    logit_factor, logit_offset float32 [B, V]  > `tensorrt/candidates.py`
    rope_positions, image_features    of a decoder that takes images: `tensorrt/images.py`
    past_key_i, past_value_i  [B, num_kv_heads, cache_length, head_size], in place: present_* has the same address
    logits                    float32 [B, V]
    candidate_logits/_ids     float32/int32 [B, num_candidates], best first
    log_sum_exp               float32 [B, 1]

A token sees the positions 0 ... its own of its row, whatever the cache holds beyond (`tensorrt/ops.py`). So a row may
be padded at its end: what its last tokens write is overwritten before any token sees it. And a row may be idle: it
stands at position 0 and writes to the spare positions, cache_length - S ... cache_length - 1, which no token ever sees.

    profile           B                  S                           K
    decode            1 ... num_slots    1 (2 may be allowed)        attention_lengths, the first to the last
    prefill           1                  1 ... prefill_chunk         likewise
    batched_prefill   1 ... 8 slots      1 ... 128 or the chunk      likewise

The manifest's `attention_lengths` are the K to run with (the last is cache_length), its `prefill_lengths` the S that
prompts are padded to. A padded row must end within the cache; cache_length - max_length >= the longest of
batched_prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.core import TokenIds

from autoglm_export.checkpoint.weights import Array, CountedWeights, weight_shapes
from autoglm_export.model.decoder import build_decoder
from autoglm_export.model.spec import ModelSpec
from autoglm_export.quantize.calibration import Calibration
from autoglm_export.quantize.int4 import Int4Weight, fitted, nearest, title_of
from autoglm_export.runtimes import Progress, image_details, no_progress

from .build import Builder, BuildSettings, Profile
from .candidates import add_candidates
from .device_reference import write_reference
from .engine_weights import EngineWeights
from .forms import Built, build_in_a_form, shape_of
from .linear import Fp8Linears, HalfLinears, Int4Linears, Linears, fp8_kept_layers, product_type
from .module import MODULES, load_tensorrt
from .network import Network
from .ops import TensorRTOps
from .options import KV_DTYPES, check_candidates, check_form, check_rounding, checked_capabilities, checked_kv_dtype
from .profiles import (
    attention_lengths_of,
    cache_length_of,
    feature_rows_of,
    prefill_lengths_of,
    profiles_of,
    ranges_of,
)
from .timing import timing_cache

ENGINE_FILE = "engine.plan"
DEFAULT_CANDIDATES = 64
# From TensorRT 11.2 on other levels may take unstable tactics (TensorRT-Model-Connect,
# families/qwen/builder_policy.py).
FP8_BUILDER_LEVEL = 0


def _check(spec: ModelSpec, precision: str, num_candidates: int, int4_rounding: str, attention: str | None) -> None:
    check_candidates(num_candidates, spec.vocab_size)
    check_rounding(precision, int4_rounding)
    check_form(attention)


def write_engine(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    *,
    runtime: str,
    precision: str,
    num_slots: int,
    max_length: int,
    prefill_chunk: int,
    num_candidates: int = DEFAULT_CANDIDATES,
    kv_dtype: str | None = None,
    compute_capabilities: Sequence[str] = (),
    weight_streaming: bool = False,
    int4_rounding: str = "gptq",
    attention: str | None = None,
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build the engine into `folder`; returns the manifest's `runtime_details`.

    `kv_dtype` None: bf16, or fp16 for the precision fp16. `texts`: to calibrate on, for fp8 and for int4 by GPTQ,
    which takes long for wide models; "nearest" needs none. `attention`: one of `attention.FORMS`; None: the
    first that TensorRT has a kernel for, and where that is not the first, `attention_note` says so.
    Raises InvalidOption for values out of range, ExportError where TensorRT is missing or cannot build.
    """
    dtype = np.dtype(KV_DTYPES[checked_kv_dtype(precision, kv_dtype)])
    targets = checked_capabilities(runtime, precision, compute_capabilities)
    _check(spec, precision, num_candidates, int4_rounding, attention)
    job = _Job(
        spec=spec,
        weights=weights,
        folder=folder,
        module=MODULES[runtime],
        builder=Builder(load_tensorrt(MODULES[runtime])),
        precision=precision,
        dtype=dtype,
        num_slots=num_slots,
        prefill_chunk=prefill_chunk,
        cache_length=cache_length_of(max_length, prefill_chunk),
        num_candidates=num_candidates,
        targets=targets,
        weight_streaming=weight_streaming,
        calibration=Calibration(spec, weights, texts) if _is_fitted(precision, int4_rounding) else None,
        progress=progress,
    )
    built = build_in_a_form(job.defined, job.build, attention, job.shape)
    return job.details(built) | {"reference": job.write_reference(built, max_length, texts[0] if len(texts) else None)}


def _is_fitted(precision: str, int4_rounding: str) -> bool:
    """To texts."""
    return precision == "fp8" or (precision == "int4" and int4_rounding == "gptq")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """All that one engine is made of."""

    spec: ModelSpec
    weights: Mapping[str, Array]
    folder: Path
    module: str
    builder: Builder
    precision: str
    dtype: np.dtype[Any]  # of the caches
    num_slots: int
    prefill_chunk: int
    cache_length: int
    num_candidates: int
    targets: tuple[str, ...]
    weight_streaming: bool
    calibration: Calibration | None
    progress: Progress

    @property
    def feature_rows(self) -> int:
        return feature_rows_of(self.num_slots, self.prefill_chunk)

    @property
    def shape(self) -> str:
        return shape_of(self.spec, self.dtype.name, self.cache_length)

    def defined(self, form: str) -> Network:
        network = Network(self.builder.trt, self.builder.handle)
        read = CountedWeights(weight_shapes(self.spec), self.weights, self.progress, "define network")
        linears = linears_of(self.precision, network, self.spec, read, self.dtype, self.calibration)
        sizes = {"num_candidates": self.num_candidates, "feature_rows": self.feature_rows}
        define(network, self.spec, read, linears, self.dtype, self.cache_length, attention=form, **sizes)
        self.progress("define network", 1.0)
        return network

    def build(self, network: Network, decode_tokens: int) -> None:
        settings = BuildSettings(
            profiles=self._profiles(decode_tokens),
            compute_capabilities=tuple(f"SM{target.replace('.', '')}" for target in self.targets),
            weight_streaming=self.weight_streaming,
            timing_cache=timing_cache(self.module, self.folder),
            optimization_level=FP8_BUILDER_LEVEL if self.precision == "fp8" else None,
        )
        self.builder.build(network.definition, self.folder / ENGINE_FILE, settings, self.progress)

    def write_reference(self, built: Built, max_length: int, text: TokenIds | None) -> str:
        return write_reference(
            self.spec,
            EngineWeights(built.network),
            self.folder,
            precision=self.precision,
            max_length=max_length,
            prefill_chunk=self.prefill_chunk,
            text=text,
            progress=self.progress,
        )

    def details(self, built: Built) -> dict[str, Any]:
        return {
            "engine": ENGINE_FILE,
            "module": self.module,
            "cache_dtype": self.dtype.name,
            "cache_length": self.cache_length,
            "num_candidates": self.num_candidates,
            "attention": built.attempt.form,
            **({"attention_note": built.note} if built.note else {}),
            "attention_lengths": attention_lengths_of(self.cache_length),
            "prefill_lengths": prefill_lengths_of(self.prefill_chunk),
            "compute_capabilities": list(self.targets),
            "weight_streaming": self.weight_streaming,
            **image_details(self.spec),
            "profiles": {profile.name: ranges_of(profile) for profile in self._profiles(built.attempt.decode_tokens)},
            "tensors": tensors_of(built.network.definition),
        }

    def _profiles(self, decode_tokens: int) -> tuple[Profile, ...]:
        return profiles_of(self.spec, self.num_slots, self.prefill_chunk, self.cache_length, decode_tokens)


write_tensorrt = partial(write_engine, runtime="tensorrt")
write_tensorrt_rtx = partial(write_engine, runtime="tensorrt-rtx")


def define(
    network: Network,
    spec: ModelSpec,
    weights: Mapping[str, Array],
    linears: Linears,
    cache_dtype: Any,
    cache_length: int,
    *,
    num_candidates: int,
    feature_rows: int,
    attention: str = "fused",
) -> None:
    """Add the decoder and its candidates to an empty network. `attention`: one of `attention.FORMS`."""
    ops = TensorRTOps(
        network,
        spec,
        weights,
        linears,
        cache_dtype=cache_dtype,
        cache_length=cache_length,
        attention=attention,
        feature_rows=feature_rows,
    )
    build_decoder(spec, ops)
    assert ops.result is not None, "the decoder ended without logits"
    add_candidates(network, ops.result, spec.vocab_size, num_candidates)


def linears_of(
    precision: str,
    network: Network,
    spec: ModelSpec,
    weights: Mapping[str, Array],
    dtype: Any,
    calibration: Calibration | None,
) -> Linears:
    """How `precision` computes linear layers. fp8 needs a calibration; int4 without one rounds to the nearest."""

    def largest_input(layers: Sequence[str]) -> float:
        assert calibration is not None, "fp8 scales its activations by a calibration"
        return float(np.abs(calibration.inputs(layers[0]).rows).max()) or 1.0

    def quantize(layers: Sequence[str]) -> Int4Weight:
        weight = np.concatenate([weights[f"{name}.weight"] for name in layers])
        if calibration is None:
            return nearest(weight, product_type(layers, dtype), title_of(layers))
        inputs = calibration.inputs(layers[0]).weighted()
        return fitted(weight, inputs, product_type(layers, dtype), title_of(layers))

    if precision == "fp8":
        return Fp8Linears(network, weights, dtype, largest_input, fp8_kept_layers(spec))
    return Int4Linears(network, dtype, quantize) if precision == "int4" else HalfLinears(network, weights, dtype)


def tensors_of(definition: Any) -> list[dict[str, Any]]:
    """The network's inputs and outputs, as the manifest lists them."""
    sides = (
        ("input", definition.num_inputs, definition.get_input),
        ("output", definition.num_outputs, definition.get_output),
    )
    return [
        {
            "name": tensor.name,
            "mode": mode,
            "dtype": str(tensor.dtype).rpartition(".")[2].lower(),
            "shape": list(tensor.shape),
        }
        for mode, count, get in sides
        for tensor in map(get, range(count))
    ]
