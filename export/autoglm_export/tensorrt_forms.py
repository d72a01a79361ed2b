"""The form of attention that an engine gets: the first that TensorRT has a kernel for, tried by building."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import ExportError, NoAttentionKernel
from .spec import ModelSpec
from .tensorrt_attention import FORMS
from .tensorrt_network import Network


@dataclass(frozen=True, slots=True)
class Built:
    """`note`: why it is not the first form, in a sentence; empty where it is."""

    network: Network
    form: str
    note: str


def build_in_a_form(
    define: Callable[[str], Network], build: Callable[[Network], None], forms: Sequence[str], shape: str
) -> Built:
    """Build in the first of `forms` that can be built. `shape`: what the sentence calls the shapes and types.

    Raises what the last form's build raised, and at once what has nothing to do with the form.
    """
    network: Network | None = None
    for form, is_last in zip(forms, [*(False for _ in forms[1:]), True], strict=True):
        network = _defined(define, form, network)
        try:
            build(network)
        except ExportError as error:
            if is_last or not _is_of_the_form(form, error):
                raise
        else:
            return Built(network, form, "" if form == forms[0] else _note(form, shape))
    raise AssertionError("no form of attention to build in")


def shape_of(spec: ModelSpec, cache_dtype: str, cache_length: int) -> str:
    return (
        f"{spec.num_heads} query and {spec.num_kv_heads} key/value heads of {spec.head_size}, {cache_dtype}, "
        f"{cache_length} positions"
    )


def _defined(define: Callable[[str], Network], form: str, before: Network | None) -> Network:
    """Constants take long to make (int4's most of all), so one network serves both forms of the layer."""
    if form == "decomposed" and before is not None:
        before.allow_decomposition()
        return before
    return define(form)


def _is_of_the_form(form: str, error: ExportError) -> bool:
    """Taken apart, attention may fail in TensorRT's compiler, which says nothing of attention then."""
    return form == "decomposed" or isinstance(error, NoAttentionKernel)


def _note(form: str, shape: str) -> str:
    assert form in FORMS
    return f"TensorRT has no fused kernel for this shape and type ({shape}); attention is {form}, which is slower"
