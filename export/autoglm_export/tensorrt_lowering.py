"""The decoder as a TensorRT engine: one network, three optimisation profiles.

The engine's tensors (B sequences, S tokens of each, K positions that attention reads; row i of a decode step is slot i):

    token_ids, position_ids   int32 [B, S]    position_ids: where each token stands in its slot
    write_indices             int32 [B]       the first cache position that the row writes; write_indices + S <= cache_length
    key_positions             int32 [K]       0 ... K - 1; beyond every position that counts, so K >= the longest row's end
    logit_indices             int32 [B, 1]    which of the S tokens gives the logits
    inverse_temperature       float32 [B, 1]  \\
    logit_factor, logit_offset float32 [B, V]  > `tensorrt_candidates.py`
    past_key_i, past_value_i  [B, num_kv_heads, cache_length, head_size], in place: present_* has the same address
    logits                    float32 [B, V]
    candidate_logits/_ids     float32/int32 [B, num_candidates], best first
    log_sum_exp               float32 [B, 1]

A token sees the positions 0 ... its own of its row, whatever the cache holds beyond (`tensorrt_ops.py`). So a row may be
padded at its end: what its last tokens write is overwritten before any token sees it. And a row may be idle: it stands at
position 0 and writes to the spare positions, cache_length - S ... cache_length - 1, which no token ever sees.

    profile           B                  S                           K
    decode            1 ... num_slots    1                           attention_lengths, the first to the last
    prefill           1                  1 ... prefill_chunk         likewise
    batched_prefill   1 ... 8 slots      1 ... 128 or the chunk      likewise

The manifest's `attention_lengths` are the K to run with (the last is cache_length), its `prefill_lengths` the S that
prompts are padded to. A padded row must end within the cache; cache_length - max_length >= the longest of batched_prefill.
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
ATTENTION_LENGTHS = (256, 1024, 4096, 16384)  # and the cache's own
PREFILL_LENGTHS = (16, 64, 128, 256, 512)  # and the chunk's own
BATCHED_ROWS, BATCHED_LENGTH = (
    8,
    128,
)  # beyond some 200 tokens a call is bound by arithmetic, and more rows save nothing
_USUAL_KEYS = 4096  # that kernels are timed for
_CACHE_MULTIPLE = 16  # positions


def cache_length_of(max_length: int, prefill_chunk: int) -> int:
    """Positions of a slot's cache: as many beyond what a slot holds as an idle row of a batched prefill writes."""
    return -(-(max_length + min(BATCHED_LENGTH, prefill_chunk)) // _CACHE_MULTIPLE) * _CACHE_MULTIPLE


def attention_lengths_of(cache_length: int) -> list[int]:
    """How many positions attention may read, rising."""
    return [length for length in ATTENTION_LENGTHS if length < cache_length] + [cache_length]


def prefill_lengths_of(prefill_chunk: int) -> list[int]:
    """What prompts are padded to, rising."""
    return [length for length in PREFILL_LENGTHS if length < prefill_chunk] + [prefill_chunk]


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
    length = cache_length_of(max_length, prefill_chunk)
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
        "attention": "fused",
        "attention_lengths": attention_lengths_of(length),
        "prefill_lengths": prefill_lengths_of(prefill_chunk),
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


def profiles_of(spec: ModelSpec, num_slots: int, prefill_chunk: int, cache_length: int) -> tuple[Profile, ...]:
    """See the module docstring, in its order."""
    rows, tokens = min(BATCHED_ROWS, num_slots), min(BATCHED_LENGTH, prefill_chunk)
    profile = partial(_profile, spec, cache_length)
    return (
        profile("decode", num_slots, 1),
        profile("prefill", 1, prefill_chunk),
        profile("batched_prefill", rows, tokens),
    )


def _profile(spec: ModelSpec, cache_length: int, name: str, batch: int, sequence: int) -> Profile:
    shapes = partial(input_shapes, spec, cache_length)
    shortest, usual = attention_lengths_of(cache_length)[0], min(_USUAL_KEYS, cache_length)
    return Profile(name, shapes(1, 1, shortest), shapes(batch, sequence, usual), shapes(batch, sequence, cache_length))


def input_shapes(spec: ModelSpec, cache_length: int, batch: int, sequence: int, keys: int) -> dict[str, Shape]:
    """Name -> shape of every input of the engine."""
    cache = (batch, spec.num_kv_heads, cache_length, spec.head_size)
    names = [f"past_{kind}_{layer}" for layer in range(spec.num_layers) for kind in ("key", "value")]
    return {
        "token_ids": (batch, sequence),
        "position_ids": (batch, sequence),
        "write_indices": (batch,),
        "key_positions": (keys,),
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
    """What the manifest tells of a profile: the ranges of B, S and K."""
    tokens, keys = (
        [side[name] for side in (profile.smallest, profile.largest)] for name in ("token_ids", "key_positions")
    )
    (batch, sequence), (key_range,) = (map(list, zip(*shapes, strict=True)) for shapes in (tokens, keys))
    return {"batch": batch, "sequence": sequence, "keys": key_range}
