"""Shapes of models that a runtime's kernels lack are refused at export, by name; all others are computed right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.auto_runtime.choice import Candidates, fitting
from autoglm_export.errors import UnsupportedModel
from autoglm_export.export import export
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.native.lowering import write_native
from autoglm_export.runtime_shapes import check_shape

from tests.runners.test_native import CHUNK, MAX_LENGTH, NUM_SLOTS, TARGETS, build, in_chunks, random_ids, relative
from tests.runners.test_native import random_weights as even_weights
from tests.support.export.native_builds import library
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_decoders import SPECS, expected_logits, onnx_runner, random_weights
from tests.support.export.tiny_models import write_checkpoint

LLAMA = SPECS["llama"]
ROPE = RopeSpec(1e4, 16, interleaved=True)


def with_heads(size: int, rope: RopeSpec = ROPE) -> ModelSpec:
    return dataclasses.replace(LLAMA, num_layers=1, num_heads=2, num_kv_heads=1, head_size=size, rope=rope)


REFUSED: list[tuple[str, ModelSpec, str]] = [
    ("native", with_heads(17), "the head size is 17; the native runtime takes even ones"),
    ("onnx", with_heads(17), "the head size is 17; ONNX Runtime takes multiples of 16"),
    ("onnx", with_heads(24), "the head size is 24; ONNX Runtime takes multiples of 16"),
    (
        "onnx",
        with_heads(32, RopeSpec(1e4, 8, interleaved=True)),
        "rope turns 8 dimensions; ONNX Runtime turns multiples",
    ),
    *(
        (
            runtime,
            dataclasses.replace(LLAMA, **{field: 131_073}),
            f"the layer {layer} has 131073 inputs; .* up to 131072",
        )
        for runtime in ("native", "onnx")
        for field, layer in (("hidden_size", "query"), ("intermediate_size", "down"))
    ),
    ("native", dataclasses.replace(LLAMA, num_heads=8194), "the layer output has 131104 inputs"),
]


@pytest.mark.parametrize(("runtime", "spec", "message"), REFUSED, ids=[f"{row[0]}: {row[2][:30]}" for row in REFUSED])
def test_a_shape_that_a_runtime_lacks_is_named(runtime: str, spec: ModelSpec, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        check_shape(spec, runtime, "int8")


@pytest.mark.parametrize("runtime", ["native", "onnx", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("size", [16, 64, 128, 576])
def test_other_shapes_are_taken(runtime: str, size: int) -> None:
    check_shape(with_heads(size), runtime, "int8")
    check_shape(dataclasses.replace(LLAMA, hidden_size=131_072), runtime, "int8")
    check_shape(dataclasses.replace(LLAMA, hidden_size=131_073), runtime, "fp32")


def test_a_lowering_refuses_before_it_writes(tmp_path: Path) -> None:
    limits = {"num_slots": 1, "max_length": 8, "prefill_chunk": 8}
    with pytest.raises(UnsupportedModel, match="the head size is 17; the native runtime takes even ones"):
        write_native(with_heads(17), {}, tmp_path, **limits)
    with pytest.raises(UnsupportedModel, match="the head size is 24; ONNX Runtime takes multiples of 16"):
        onnx_runner(tmp_path, with_heads(24), random_weights(with_heads(24)))
    assert not list(tmp_path.iterdir())


def test_auto_leaves_out_what_lacks_the_shape() -> None:
    both = Candidates(("native", "onnx"))
    assert fitting(both, LLAMA, None) == both
    told = "the head size is 24; ONNX Runtime takes multiples of 16"
    assert fitting(both, with_heads(24), None) == Candidates(("native",), {"onnx": told})
    with pytest.raises(UnsupportedModel, match="ONNX Runtime takes multiples of 16"):
        fitting(both, with_heads(17), None)


@pytest.mark.parity
@pytest.mark.parametrize("runtime", ["native", "auto"])
def test_an_export_of_odd_heads_writes_nothing(runtime: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "glm", "glm", head_dim=17)
    with pytest.raises(UnsupportedModel, match=r"the head size is 17|rope turns 8 dimensions"):
        export(tmp_path / "glm", tmp_path / "artifact", runtime=runtime)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parity
@pytest.mark.parametrize("size", [2, 514, 576, 1024])
@pytest.mark.parametrize("target", TARGETS)
def test_heads_of_any_even_size_are_computed_natively(size: int, target: str, tmp_path: Path) -> None:
    spec = with_heads(size, RopeSpec(1e4, min(size, 64), interleaved=False))
    ids, rows = random_ids(50) % spec.vocab_size, []
    limits: dict[str, Any] = {"num_slots": NUM_SLOTS, "max_length": MAX_LENGTH, "prefill_chunk": CHUNK}
    for runner in (build(tmp_path, spec, library(target), 1), NumpyRunner(spec, even_weights(spec), **limits)):
        rows.append(np.array(in_chunks(runner, ids, 0, [40, 1])))
        runner.close()
    assert relative(*rows) < 0.06


@pytest.mark.parametrize("size", [16, 576])
def test_heads_of_any_multiple_of_16_are_computed_by_onnx_runtime(size: int, tmp_path: Path) -> None:
    spec = with_heads(size)
    weights = random_weights(spec)
    runner = onnx_runner(tmp_path, spec, weights)
    ids = random_ids(14) % spec.vocab_size
    actual = np.array(in_chunks(runner, ids, 0, [9, 1]))
    runner.close()
    np.testing.assert_allclose(actual, expected_logits(spec, weights, ids)[8:], rtol=1e-3, atol=1e-3)
