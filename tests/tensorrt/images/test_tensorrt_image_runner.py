"""The TensorRT runner of a decoder that takes images: the network that the lowering defines, over a GPU that never was,
against numpy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.runners.tensorrt import step_inputs
from autoglm_engine.runners.tensorrt.features import numbered
from autoglm_export.model.spec import ModelSpec
from autoglm_export.tensorrt.lowering import write_tensorrt_rtx

from tests.support.export.image_prompts import GLM, QWEN, ImagePrompt
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_decoders import random_weights
from tests.support.tensorrt.contract_network import GpuBench
from tests.support.tensorrt.lowered_network import lowered

pytestmark = pytest.mark.tensorrt

SPECS = {"as glm4v": GLM, "as qwen3_vl": QWEN}
WIDEST = max(spec.feature_size for spec in SPECS.values())
PROMPT = ImagePrompt.random([3, (2, 3), 2, (2, 2), 5], GLM.vocab_size, WIDEST)
OTHER = ImagePrompt.random([1, (3, 2), (1, 2), 11], GLM.vocab_size, WIDEST, seed=1)
TEXT = np.random.default_rng(3).integers(0, GLM.vocab_size, 20).astype(np.int32)


@pytest.fixture(params=SPECS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> GpuBench:
    made = lowered(tmp_path, "fp16", spec=SPECS[request.param])
    made.open()
    return made


def steps(spec: ModelSpec) -> list[tuple[Span, ...]]:
    """Chunks that end inside of images, several in a call and a text among them; single tokens of images beside single
    tokens of texts; and the answers' first tokens."""
    prompt, other = PROMPT.read_by(spec), OTHER.read_by(spec)
    return [
        (prompt.span(0, 0, 8), other.span(2, 0, 5), Span(1, 0, TEXT[:7], True)),
        (prompt.span(0, 8, 9), other.span(2, 5, 6), Span(1, 7, TEXT[7:8], True)),
        (other.span(2, 6, 14), prompt.span(0, 9, 10), Span(1, 8, TEXT[8:9], True)),
        (prompt.span(0, 10, 18), other.span(2, 14, 15), Span(1, 9, TEXT[9:12], True)),
        (prompt.span(0, 18, 20), Span(1, 12, TEXT[12:13], True), other.span(2, 15, 20)),
    ]


def worst(bench: GpuBench) -> float:
    plain = NumpyRunner(bench.spec, bench.weights, num_slots=3, max_length=20, prefill_chunk=8)
    errors = []
    for spans in steps(bench.spec):
        expected = plain.issue(StepBatch(spans)).result()
        errors += [np.abs(bench.step(*spans) - expected).max() / np.abs(expected).max()]
    return float(max(errors))


def test_a_runner_serves_images_as_numpy_computes_them(bench: GpuBench) -> None:
    assert bench.runner.limits.feature_size == bench.spec.feature_size
    assert worst(bench) < 0.03
    bench.runner.copy_prefix(0, 1, 12)
    prompt = PROMPT.read_by(bench.spec)
    rows, again = bench.step(prompt.span(1, 12, 20)), bench.step(prompt.span(0, 12, 20))
    np.testing.assert_array_equal(rows, again)
    bench.runner.close()
    assert not bench.cuda.leaks


def test_a_step_of_more_rows_than_a_call_has_waits_for_the_first(tmp_path: Path) -> None:
    """Every prompt has a call of its own, and pinned memory room for one of them."""
    alone = {"batched_prefill": {"batch": [1, 1], "sequence": [1, 8]}}
    bench = lowered(tmp_path, "fp16", spec=GLM, profiles=alone)
    bench.open()
    assert bench.shapes.feature_rows == 8
    image = ImagePrompt.random([(3, 3), 11], GLM.vocab_size, GLM.hidden_size, seed=2)
    first = bench.step(image.span(0, 0, 8))[0]
    rows = bench.step(OTHER.read_by(GLM).span(2, 0, 8), image.span(1, 0, 8), image.span(0, 0, 8))
    assert bench.decoder.calls[-3:] == [(1, 8)] * 3
    np.testing.assert_array_equal(rows[1:], [first, first])
    assert np.abs(rows[0] - first).max() > 0.1


def test_calls_in_flight_keep_their_features(bench: GpuBench) -> None:
    """The next step is written while the one before has not run yet."""
    prompts = [prompt.read_by(bench.spec) for prompt in (OTHER, PROMPT)]
    expected = [bench.step(prompt.span(0, 0, 8))[0] for prompt in prompts]
    pending = [bench.runner.issue(StepBatch((prompt.span(slot, 0, 8),))) for slot, prompt in enumerate(prompts)]
    found = [one.result() for one in pending]
    for candidates, row in zip(found, expected, strict=True):
        assert candidates.token_ids[0, 0] == row.argmax()  # type: ignore[union-attr]


def test_a_text_computes_what_it_does_without_images(bench: GpuBench, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    plain = lowered(tmp_path / "text", "fp16", spec=bench.spec.without_images())
    plain.open()
    bench.step(PROMPT.read_by(bench.spec).span(2, 0, 8))  # features lie on the device
    for runner in (bench, plain):
        runner.step(Span(0, 0, TEXT[:8], True))
    spans = (Span(0, 8, TEXT[8:9], True), Span(1, 0, TEXT[:6], True))
    np.testing.assert_array_equal(bench.step(*spans), plain.step(*spans))


@pytest.mark.parametrize("fault", ["rows", "positions"])
def test_a_broken_runner_is_caught(bench: GpuBench, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "rows":
        monkeypatch.setattr(step_inputs, "numbered", lambda ids, first: numbered(ids, 0))
    else:
        along = step_inputs.positions_of
        monkeypatch.setattr(
            step_inputs, "positions_of", lambda spans: along([dataclasses.replace(s, positions=None) for s in spans])
        )
    assert worst(bench) > 0.05


def test_ids_of_images_are_numbered_in_the_order_of_their_rows() -> None:
    ids = np.array([-7, 4, -3, -7], np.int32)
    given, following = numbered(ids, 5)
    assert (given.tolist(), following) == ([-6, 4, -7, -8], 8)
    assert ids.tolist() == [-7, 4, -3, -7], "the caller's are left alone"


@pytest.mark.parametrize("name", SPECS)
def test_the_engine_builds_without_a_gpu(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    details = write_tensorrt_rtx(
        spec,
        random_weights(spec),
        tmp_path,
        precision="bf16",
        num_slots=2,
        max_length=40,
        prefill_chunk=16,
        num_candidates=8,
        compute_capabilities=["8.9"],
    )
    assert details["attention"] == "fused" and details["feature_size"] == spec.feature_size
    shapes = {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in details["tensors"]}
    assert shapes["rope_positions"] == ("int32", [-1, 3, -1])
    assert shapes["image_features"] == ("float", [32, spec.feature_size])
