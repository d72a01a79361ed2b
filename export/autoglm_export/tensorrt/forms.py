"""The form of attention that an engine gets: the first that TensorRT has a kernel for, tried by building."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoglm_export.errors import NoAttentionKernel
from autoglm_export.model.spec import ModelSpec

from .network import Network


@dataclass(frozen=True, slots=True)
class Attempt:
    """`form`: of `attention.FORMS`. `decode_tokens`: of the decode profile (`tensorrt/profiles.py`)."""

    form: str
    decode_tokens: int
    note: str  # what is said where it is not the first


# TensorRT takes other kernels where every row has one token, and none from some length on: TensorRT-RTX 1.7 for 8 slots
# of more than 22,528 positions. Where a row may have two tokens, it takes the kernels of longer spans, which have no
# such limit.
ATTEMPTS = (
    Attempt("fused", 1, ""),
    Attempt("fused", 2, "TensorRT has no fused kernel for decoding this shape and type; that of longer spans does it"),
    Attempt(
        "decomposed",
        1,
        "TensorRT has no fused kernel for this shape and type; attention is decomposed, which is slower",
    ),
)
_PLAIN = (Attempt("plain", 1, ""),)  # only where it is asked for: it is for a card whose kernels are wrong


@dataclass(frozen=True, slots=True)
class Built:
    """`note`: why it is not the first attempt, in a sentence; empty where it is."""

    network: Network
    attempt: Attempt
    note: str


def build_in_a_form(
    define: Callable[[str], Network],
    build: Callable[[Network, int], None],
    form: str | None,
    shape: str,
    offered: Sequence[Attempt] = ATTEMPTS,
) -> Built:
    """Build in `form`; None: in the first that TensorRT has kernels for. `define`: a network in a form; `build`: with
    this many `decode_tokens`; `shape`: what the sentence calls shapes and types. `offered`: in the
    order that they are tried.

    Raises what the last attempt raised, and at once what has nothing to do with kernels of attention.
    """
    attempts = [attempt for attempt in (*offered, *_PLAIN * (form is not None)) if form in (None, attempt.form)]
    network = define(attempts[0].form)
    for attempt in attempts:
        if attempt.form == "decomposed":  # constants take long to make, so the network is the same one
            network.allow_decomposition()
        try:
            build(network, attempt.decode_tokens)
        except NoAttentionKernel:
            if attempt is attempts[-1]:
                raise
        else:
            return Built(network, attempt, "" if attempt is attempts[0] else f"{attempt.note} ({shape})")
    raise AssertionError(f"attention has no form {form!r}")


def shape_of(spec: ModelSpec, cache_dtype: str, cache_length: int) -> str:
    return (
        f"{spec.num_heads} query and {spec.num_kv_heads} key/value heads of {spec.head_size}, {cache_dtype}, "
        f"{cache_length} positions"
    )
