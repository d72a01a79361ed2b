"""The decoder as a TensorRT engine: one network, two optimisation profiles (decode and prefill).

The engine's tensors (B sequences, S tokens of each; row i of a decode step is slot i):

    token_ids, position_ids   int32 [B, S]    position_ids: where each token stands in its slot
    write_indices             int32 [B]       the first cache position that the row writes; write_indices + S <= cache_length
    key_value_lengths         int32 [B]       positions that hold after the write
    logit_indices             int32 [B, 1]    which of the S tokens gives the logits
    inverse_temperature       float32 [B, 1]  \\
    logit_factor, logit_offset float32 [B, V]  > `tensorrt_candidates.py`
    past_key_i, past_value_i  [B, num_kv_heads, cache_length, head_size], in place: present_* has the same address
    logits                    float32 [B, V]
    candidate_logits/_ids     float32/int32 [B, num_candidates], best first
    log_sum_exp               float32 [B, 1]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from autoglm_engine.core import TokenIds

from .calibration import Calibration
from .decoder import build_decoder
from .errors import InvalidOption
from .int4 import Int4Weight, fitted, nearest, title_of
from .lowering import Progress, no_progress
from .spec import ModelSpec
from .tensorrt_build import Builder, BuildSettings, Profile, Shape
from .tensorrt_candidates import MOST_CANDIDATES, add_candidates
from .tensorrt_linear import Fp8Linears, HalfLinears, Int4Linears, Linears
from .tensorrt_module import MODULES, load_tensorrt
from .tensorrt_network import Network
from .tensorrt_ops import TensorRTOps
from .weights import Array, CountedWeights

ENGINE_FILE = "engine.plan"
PRECISIONS = ("bf16", "fp16", "fp8", "int4")
ROUNDINGS = ("gptq", "nearest")
KV_DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # that TensorRT-RTX builds for
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
OLDEST_CAPABILITY = {"fp16": (7, 5), "bf16": (8, 0), "int4": (8, 0), "fp8": (8, 9)}  # that has the precision's types
DEFAULT_CANDIDATES = 64
_CACHE_MULTIPLE = 16  # positions; and one of them at least is spare


def cache_length_of(max_length: int) -> int:
    """Positions of a slot's cache: one more than a slot holds at least, which idle rows of a step write to."""
    return -(-(max_length + 1) // _CACHE_MULTIPLE) * _CACHE_MULTIPLE


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
    texts: Sequence[TokenIds] = (),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build the engine into `folder`; returns the manifest's `runtime_details`.

    `kv_dtype` None: bf16, or fp16 for the precision fp16. `texts`: to calibrate on, for fp8 and for int4 by GPTQ,
    which takes long for wide models; "nearest" needs none.
    Raises InvalidOption for values out of range, ExportError where TensorRT is missing or cannot build.
    """
    kv_dtype = checked_kv_dtype(precision, kv_dtype)
    targets = checked_capabilities(runtime, precision, compute_capabilities)
    _check_candidates(num_candidates, spec.vocab_size)
    _check_rounding(precision, int4_rounding)
    module = MODULES[runtime]
    builder = Builder(load_tensorrt(module))
    network = Network(builder.trt, builder.handle)
    length = cache_length_of(max_length)
    dtype = KV_DTYPES[kv_dtype]
    read = CountedWeights(spec, weights, progress, "define network")
    is_fitted = precision == "fp8" or (precision == "int4" and int4_rounding == "gptq")
    linears = linears_of(precision, network, read, dtype, Calibration(spec, weights, texts) if is_fitted else None)
    define(network, spec, read, linears, dtype, length, num_candidates)
    progress("define network", 1.0)
    profiles = profiles_of(spec, num_slots, prefill_chunk, length)
    settings = BuildSettings(
        profiles=profiles,
        compute_capabilities=tuple(f"SM{target.replace('.', '')}" for target in targets),
        weight_streaming=weight_streaming,
        timing_cache=_timing_cache(module, folder),
    )
    builder.build(network.definition, folder / ENGINE_FILE, settings, progress)
    return {
        "engine": ENGINE_FILE,
        "module": module,
        "cache_dtype": np.dtype(dtype).name,
        "cache_length": length,
        "num_candidates": num_candidates,
        "compute_capabilities": list(targets),
        "weight_streaming": weight_streaming,
        "profiles": {profile.name: _ranges(profile) for profile in profiles},
        "tensors": tensors_of(network.definition),
    }


write_tensorrt = partial(write_engine, runtime="tensorrt")
write_tensorrt_rtx = partial(write_engine, runtime="tensorrt-rtx")


def define(
    network: Network,
    spec: ModelSpec,
    weights: Mapping[str, Array],
    linears: Linears,
    cache_dtype: Any,
    cache_length: int,
    num_candidates: int,
) -> None:
    """Add the decoder and its candidates to an empty network."""
    ops = TensorRTOps(network, spec, weights, linears, cache_dtype=cache_dtype, cache_length=cache_length)
    build_decoder(spec, ops)
    assert ops.result is not None, "the decoder ended without logits"
    add_candidates(network, ops.result, spec.vocab_size, num_candidates)


def linears_of(
    precision: str,
    network: Network,
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
            return nearest(weight, dtype, title_of(layers))
        return fitted(weight, calibration.inputs(layers[0]).weighted(), dtype, title_of(layers))

    if precision == "fp8":
        return Fp8Linears(network, weights, dtype, largest_input)
    return Int4Linears(network, dtype, quantize) if precision == "int4" else HalfLinears(network, weights, dtype)


def profiles_of(spec: ModelSpec, num_slots: int, prefill_chunk: int, cache_length: int) -> tuple[Profile, Profile]:
    """Decode: one token of 1 ... num_slots sequences; prefill: 1 ... prefill_chunk tokens of one sequence."""
    shapes = partial(input_shapes, spec, cache_length)
    return (
        Profile("decode", shapes(1, 1), shapes(num_slots, 1), shapes(num_slots, 1)),
        Profile("prefill", shapes(1, 1), shapes(1, prefill_chunk), shapes(1, prefill_chunk)),
    )


def input_shapes(spec: ModelSpec, cache_length: int, batch: int, sequence: int) -> dict[str, Shape]:
    """Name -> shape of every input of the engine."""
    cache = (batch, spec.num_kv_heads, cache_length, spec.head_size)
    names = [f"past_{kind}_{layer}" for layer in range(spec.num_layers) for kind in ("key", "value")]
    return {
        "token_ids": (batch, sequence),
        "position_ids": (batch, sequence),
        "write_indices": (batch,),
        "key_value_lengths": (batch,),
        "logit_indices": (batch, 1),
        "inverse_temperature": (batch, 1),
        "logit_factor": (batch, spec.vocab_size),
        "logit_offset": (batch, spec.vocab_size),
    } | dict.fromkeys(names, cache)


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


def checked_kv_dtype(precision: str, kv_dtype: str | None) -> str:
    """The concrete 16-bit type of cache and activations."""
    if precision not in PRECISIONS:
        raise InvalidOption(f"the precision {precision!r} is not known; allowed are {', '.join(PRECISIONS)}")
    if kv_dtype is None:
        return precision if precision in KV_DTYPES else "bf16"
    if kv_dtype not in KV_DTYPES:
        raise InvalidOption(f"kv_dtype is {kv_dtype!r}; allowed are {', '.join(KV_DTYPES)}")
    if precision in KV_DTYPES and kv_dtype != precision:
        raise InvalidOption(f"kv_dtype is {kv_dtype} and the precision {precision}; they must be the same")
    return kv_dtype


def checked_capabilities(runtime: str, precision: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The targets of an ahead-of-time build; none: the GPU of this machine."""
    if runtime == "tensorrt":
        if asked:
            raise InvalidOption(
                "compute_capability is for tensorrt-rtx; tensorrt builds for the GPU of its own machine"
            )
        return ()
    if unknown := [target for target in asked if target not in CAPABILITIES]:
        raise InvalidOption(
            f"compute_capability is {unknown[0]!r}; tensorrt-rtx builds for {', '.join(CAPABILITIES)}"
            + (" (for 9.0, Hopper, take tensorrt)" if unknown[0] == "9.0" else "")
        )
    oldest = OLDEST_CAPABILITY[precision]
    if too_old := [target for target in asked if _numbers(target) < oldest]:
        raise InvalidOption(f"compute_capability is {too_old[0]}; {precision} needs {oldest[0]}.{oldest[1]} or newer")
    return tuple(asked or [target for target in DEFAULT_CAPABILITIES if _numbers(target) >= oldest])


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(word) for word in capability.split("."))


def _check_candidates(num_candidates: int, vocab_size: int) -> None:
    most = min(MOST_CANDIDATES, vocab_size)
    if not 1 <= num_candidates <= most:
        raise InvalidOption(f"num_candidates is {num_candidates}; allowed is 1 ... {most} for this model")


def _check_rounding(precision: str, int4_rounding: str) -> None:
    if int4_rounding not in ROUNDINGS:
        raise InvalidOption(f"int4_rounding is {int4_rounding!r}; allowed are {', '.join(ROUNDINGS)}")
    if precision != "int4" and int4_rounding != ROUNDINGS[0]:
        raise InvalidOption(f"int4_rounding is of no use to {precision}")


def _timing_cache(module: str, folder: Path) -> Path | None:
    """Beside the artifact, so that the next build on this machine times less. TensorRT-RTX times nothing at build."""
    return folder.parent / f"{module}.timing-cache" if module == "tensorrt" else None


def _ranges(profile: Profile) -> dict[str, list[Any]]:
    """What the manifest tells of a profile: the ranges of B and S."""
    smallest, largest = profile.smallest["token_ids"], profile.largest["token_ids"]
    return {"batch": [smallest[0], largest[0]], "sequence": [smallest[1], largest[1]]}
