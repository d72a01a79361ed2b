"""The form of attention that an engine gets, by building: fused first, and another one, which is named, where that
cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from autoglm_export.errors import ExportError, NoAttentionKernel
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.attention import FORMS
from autoglm_export.tensorrt.build import failure
from autoglm_export.tensorrt.forms import Built, build_in_a_form
from autoglm_export.tensorrt.lowering import write_tensorrt_rtx

from tests.support.export.tiny_decoders import SPECS, random_weights

NO_KERNEL = "MyelinCheckException: Attention operation was not supported by a dedicated kernel. (See https://docs)"
BASE = dataclasses.replace(SPECS["glm4"], num_layers=1)


def with_heads(count: int, kv_count: int, size: int) -> ModelSpec:
    rope = dataclasses.replace(BASE.rope, dims=size // 2 // 2 * 2)
    return dataclasses.replace(BASE, num_heads=count, num_kv_heads=kv_count, head_size=size, rope=rope)


def build(
    spec: ModelSpec, folder: Path, precision: str = "bf16", max_length: int = 20, **options: Any
) -> dict[str, Any]:
    limits = {"num_slots": 2, "max_length": max_length, "prefill_chunk": 16, "num_candidates": 8}
    given = {"compute_capabilities": ["8.9"], **limits, **options}
    return write_tensorrt_rtx(spec, random_weights(spec), folder, precision=precision, **given)


# ---- without TensorRT


class FakeNetwork:
    def __init__(self, form: str) -> None:
        self.form, self.may_be_decomposed = form, False

    def allow_decomposition(self) -> None:
        self.may_be_decomposed = True


def built(failures: dict[tuple[str, int], ExportError], form: str | None = None) -> tuple[Built, list[str]]:
    """What is built where these attempts fail; and the forms that a network was defined for."""
    defined: list[str] = []

    def define(form: str) -> Any:
        defined.append(form)
        return FakeNetwork(form)

    def build(network: Any, decode_tokens: int) -> None:
        form = "decomposed" if network.may_be_decomposed else network.form
        if (form, decode_tokens) in failures:
            raise failures[form, decode_tokens]

    return build_in_a_form(define, build, form, "these heads"), defined


NEVER_FUSED = {("fused", 1): NoAttentionKernel("none"), ("fused", 2): NoAttentionKernel("none")}


def test_fused_where_there_is_a_kernel() -> None:
    found, defined = built({})
    assert (found.attempt.form, found.attempt.decode_tokens, found.note, defined) == ("fused", 1, "", ["fused"])


def test_the_kernel_of_longer_spans_decodes_where_no_other_does() -> None:
    found, defined = built({("fused", 1): NoAttentionKernel("none")})
    assert (found.attempt.form, found.attempt.decode_tokens, defined) == ("fused", 2, ["fused"])
    assert found.note == (
        "TensorRT has no fused kernel for decoding this shape and type; that of longer spans does it (these heads)"
    )


def test_one_network_serves_both_forms_of_the_layer() -> None:
    found, defined = built(NEVER_FUSED)
    assert (found.attempt.form, defined) == ("decomposed", ["fused"])
    assert found.note == (
        "TensorRT has no fused kernel for this shape and type; attention is decomposed, which is slower (these heads)"
    )


def test_what_has_nothing_to_do_with_attention_is_raised_at_once() -> None:
    with pytest.raises(ExportError, match="memory ran out"):
        built({("fused", 1): ExportError("memory ran out")})


def test_the_last_attempt_says_why() -> None:
    with pytest.raises(ExportError, match="a bad GPU"):
        built(NEVER_FUSED | {("decomposed", 1): ExportError("a bad GPU")})


def test_a_form_that_is_asked_for_is_the_only_one() -> None:
    with pytest.raises(NoAttentionKernel):
        built(NEVER_FUSED, "fused")
    for form in ("decomposed", "plain"):
        found, defined = built({}, form)
        assert (found.attempt.form, found.note, defined) == (form, "", [form])


def test_the_message_of_a_missing_kernel_is_told_from_others() -> None:
    missing = failure([NO_KERNEL])
    assert isinstance(missing, NoAttentionKernel)
    assert str(missing) == "the engine was not built: TensorRT has no fused attention kernel for this shape and type"
    assert not isinstance(failure(["OutOfMemory"]), NoAttentionKernel)
    too_old = failure(["IAttention requires GPUs with CUDA capability 8.0 or higher"])
    assert "attention needs a GPU of compute capability 8.0 or newer" in str(too_old)


# ---- with TensorRT


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("max_length", [32, 8_000, 25_000])
def test_the_heads_of_glm_4_are_fused_for_every_target(max_length: int, precision: str, tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 decodes two slots of 25,000 tokens by the kernel of longer spans only."""
    details = build(with_heads(32, 2, 128), tmp_path, precision, max_length, compute_capabilities=())
    assert details["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"]
    assert details["attention"] == "fused"
    is_long = max_length > 20_000
    assert details["profiles"]["decode"]["sequence"] == [1, 2 if is_long else 1]
    assert ("attention_note" in details) is is_long


@pytest.mark.tensorrt
def test_heads_without_a_kernel_are_decomposed(tmp_path: Path) -> None:
    details = build(with_heads(4, 2, 264), tmp_path)
    assert details["attention"] == "decomposed"
    assert details["attention_note"] == (
        "TensorRT has no fused kernel for this shape and type; attention is decomposed, which is slower (4 query and 2 "
        "key/value heads of 264, bfloat16, 48 positions)"
    )
    assert (tmp_path / details["engine"]).stat().st_size > 10_000


@pytest.mark.tensorrt
@pytest.mark.parametrize("form", FORMS)
def test_a_form_can_be_asked_for(form: str, tmp_path: Path) -> None:
    details = build(BASE, tmp_path, attention=form)
    assert (details["attention"], details.get("attention_note")) == (form, None)


@pytest.mark.tensorrt
def test_a_form_that_cannot_be_built_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(NoAttentionKernel, match="no fused attention kernel for this shape and type"):
        build(with_heads(4, 2, 264), tmp_path, attention="fused")
