"""The options of a TensorRT export: what is allowed, and what stands for what was left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from autoglm_export.errors import InvalidOption

from .attention import FORMS
from .candidates import MAX_CANDIDATES

PRECISIONS = ("bf16", "fp16", "fp8", "int4")
ROUNDINGS = ("gptq", "nearest")
KV_DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
# That TensorRT-RTX builds for, but 7.5: attention needs 8.0 (IAttention's documentation).
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
OLDEST_CAPABILITY = {"fp16": (8, 0), "bf16": (8, 0), "int4": (8, 0), "fp8": (8, 9)}  # that has the precision's types


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
    if "7.5" in asked:
        raise InvalidOption("compute_capability is '7.5'; attention needs 8.0 or newer")
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


def check_candidates(num_candidates: int, vocab_size: int) -> None:
    most = min(MAX_CANDIDATES, vocab_size)
    if not 1 <= num_candidates <= most:
        raise InvalidOption(f"num_candidates is {num_candidates}; allowed is 1 ... {most} for this model")


def check_rounding(precision: str, int4_rounding: str) -> None:
    if int4_rounding not in ROUNDINGS:
        raise InvalidOption(f"int4_rounding is {int4_rounding!r}; allowed are {', '.join(ROUNDINGS)}")
    if precision != "int4" and int4_rounding != ROUNDINGS[0]:
        raise InvalidOption(f"int4_rounding is of no use to {precision}")


def check_form(attention: str | None) -> None:
    if attention is not None and attention not in FORMS:
        raise InvalidOption(f"attention is {attention!r}; allowed are {', '.join(FORMS)}")
