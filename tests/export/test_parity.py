"""The parity gate, and parity itself: each family in fp32 and int8, prefill, chunks and decode, against
transformers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.bundled import resolve
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import ParityError
from autoglm_export.export import check_artifact, export
from autoglm_export.parity import gate as parity
from autoglm_export.parity.reference import Reference

from tests.support.export.artifacts import with_limits
from tests.support.export.numpy_runner import HalfOps, NumpyRunner
from tests.support.export.tiny_models import FAMILIES, VOCAB_SIZE, write_checkpoint

pytestmark = pytest.mark.parity

MAX_LENGTH = 160
export_fp32 = functools.partial(export, runtime="onnx", precision="fp32")


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint, its reference, and 96 random token ids."""

    path: Path
    checkpoint: Checkpoint
    reference: Reference
    ids: Any


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("parity") / request.param
    write_checkpoint(path, request.param)
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, 96).astype(np.int32)
    return Tiny(path, open_checkpoint(path), Reference.load(path), ids)


def assert_same(runner: Runner, tiny: Tiny, tolerance: float = parity.BOUNDS["fp32"]["relative_l2"]) -> None:
    """Decode, prefill in chunks of several sizes and prefill after a prefix all give the reference's logits."""
    expected = tiny.reference.logits(tiny.ids)
    (decoded,) = parity.teacher_forced(runner, [tiny.ids])
    assert relative(decoded, expected) < tolerance
    for chunk in (32, 7, 31):
        assert relative(parity.prefill(runner, tiny.ids, slot=1, chunk=chunk), expected[-1]) < tolerance


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_spec_and_weights_describe_the_model(tiny: Tiny) -> None:
    """In plain numpy: whatever fails here is wrong in the spec or in the weights, not in a runtime."""
    runner = NumpyRunner(tiny.checkpoint.spec, tiny.checkpoint.weights, max_length=MAX_LENGTH)
    assert_same(runner, tiny, tolerance=2e-5)


def export_tiny(tiny: Tiny, output: Path, precision: str, runtime: str = "onnx") -> tuple[Runner, Manifest]:
    limits = {"max_slots": 4, "max_length": MAX_LENGTH, "prefill_chunk": 32}
    manifest = export(tiny.path, output, runtime=runtime, precision=precision, **limits)
    return load_runner(output, manifest, num_threads=1), manifest


def test_onnx_fp32(tiny: Tiny, tmp_path: Path) -> None:
    runner, _ = export_tiny(tiny, tmp_path / "artifact", "fp32")
    assert_same(runner, tiny)
    prompt = tiny.ids[:40]
    (answer,) = parity.greedy(runner, [prompt], 64)
    assert parity.greedy_agreement(tiny.reference, prompt, answer) == 1.0


def test_onnx_fp16(tiny: Tiny, tmp_path: Path) -> None:
    runner, _ = export_tiny(tiny, tmp_path / "artifact", "fp16")
    assert_same(runner, tiny, tolerance=parity.BOUNDS["fp16"]["relative_l2"] / 2)


def test_rounding_to_half_everywhere_stays_within_the_bound(tiny: Tiny) -> None:
    """ONNX Runtime's CPU kernels multiply in float32 and do not round activations; a GPU does, as numpy does here."""
    runner = NumpyRunner(tiny.checkpoint.spec, tiny.checkpoint.weights, ops=HalfOps, max_length=MAX_LENGTH)
    assert_same(runner, tiny, tolerance=parity.BOUNDS["fp16"]["relative_l2"] / 2)


def test_onnx_batch_of_ragged_spans(tiny: Tiny, tmp_path: Path) -> None:
    """Slots at different positions, decode and prefill in one step, each row as if it were alone."""
    runner, _ = export_tiny(tiny, tmp_path / "artifact", "fp32")
    expected = tiny.reference.logits(tiny.ids)
    lengths = {0: 5, 1: 60, 2: 33, 3: 1}
    for slot, length in lengths.items():
        parity.prefill(runner, tiny.ids[:length], slot)
    sizes = {0: 1, 1: 20, 2: 1, 3: 1}
    spans = [
        Span(slot, lengths[slot], tiny.ids[lengths[slot] : lengths[slot] + size], True) for slot, size in sizes.items()
    ]
    logits = run_step(runner, StepBatch(tuple(spans)))
    for row, span in zip(logits, spans, strict=True):
        assert relative(row, expected[span.start + len(span.token_ids) - 1]) < parity.BOUNDS["fp32"]["relative_l2"]


def test_the_gate_passes_and_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    manifest = export_fp32(tiny.path, tmp_path / "a", max_length=MAX_LENGTH, max_slots=2, check=True)
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    assert set(manifest.parity["texts"]) == {"english", "chinese", "code"}
    assert Manifest.load(tmp_path / "a") == manifest


def test_int8_stays_near(tiny: Tiny, tmp_path: Path) -> None:
    """Random weights punish quantisation more than trained ones; the bound on perplexity is for real models."""
    runner, _ = export_tiny(tiny, tmp_path / "artifact", "int8", "native")
    expected = tiny.reference.logits(tiny.ids)
    (decoded,) = parity.teacher_forced(runner, [tiny.ids])
    assert relative(decoded, expected) < 0.1
    assert relative(parity.prefill(runner, tiny.ids, slot=1), decoded[-1]) < 0.05


def spoiled(checkpoint: Checkpoint, name: str) -> NumpyRunner:
    weights = dict(checkpoint.weights)
    weights[name] = weights[name] * np.float32(1.01)
    return NumpyRunner(checkpoint.spec, weights, max_length=MAX_LENGTH)


@pytest.mark.parametrize("name", ["layers.1.down.weight", "layers.0.key.bias", "final_norm", "layers.0.attention_norm"])
def test_the_gate_sees_one_percent_of_one_weight(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "llama", "llama")
    checkpoint, reference = open_checkpoint(tmp_path / "llama"), Reference.load(tmp_path / "llama")
    ids = np.arange(90, dtype=np.int32) * 3
    reports = parity.compare_texts(spoiled(checkpoint, name), reference, {"english": ids})
    report = parity.ParityReport(reference="", precision="fp32", texts=reports)
    with pytest.raises(ParityError, match=r"logits of the english text are .* off, above 0\.001"):
        report.enforce()


def test_an_answer_agrees_up_to_its_first_other_token(tmp_path: Path) -> None:
    """Prompts decode together, more of them than slots, as each does alone."""
    write_checkpoint(tmp_path / "llama", "llama")
    checkpoint, reference = open_checkpoint(tmp_path / "llama"), Reference.load(tmp_path / "llama")
    runner = NumpyRunner(checkpoint.spec, checkpoint.weights, max_length=MAX_LENGTH)
    prompts = [np.arange(count, dtype=np.int32) * 3 for count in range(9, 9 + runner.limits.num_slots + 1)]
    answers = parity.greedy(runner, prompts, 24)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert parity.greedy(runner, [prompt], 24)[0].tolist() == answer.tolist()
        assert parity.greedy_agreement(reference, prompt, answer) == 1.0
        for place in (0, 10, 23):
            other = answer.copy()
            other[place] ^= 1
            assert parity.greedy_agreement(reference, prompt, other) == place / 24


def text_report(**changes: float) -> parity.TextReport:
    perfect: dict[str, Any] = {field.name: 1.0 for field in dataclasses.fields(parity.TextReport)}
    return parity.TextReport(**{**perfect, "tokens": 101, "relative_l2": 0.0, "prefill_relative_l2": 0.0, **changes})


REPORTS: list[tuple[str, dict[str, float], str]] = [
    ("fp32", {}, ""),
    ("fp32", {"relative_l2": 2e-3}, "above 0.001"),
    ("fp32", {"prefill_relative_l2": float("nan")}, "prefill logits"),
    ("fp32", {"greedy_agreement": 0.5}, "differ after 50%"),
    ("fp16", {"relative_l2": 9e-3, "greedy_agreement": 0.5, "loss": 1.004}, ""),
    ("fp16", {"relative_l2": 2e-2}, "above 0.01"),
    ("fp16", {"prefill_relative_l2": float("inf")}, "prefill logits"),
    ("fp16", {"loss": 1.006}, "perplexity is 1.0060 times the reference's, above 1.005"),
    ("int8", {"relative_l2": 0.1, "greedy_agreement": 0.5, "loss": 1.019}, ""),
    ("int8", {"loss": 1.021}, "perplexity is 1.0212 times the reference's, above 1.02"),
    ("int8", {"loss": float("nan")}, "perplexity"),
    ("bf16", {"relative_l2": 0.02, "loss": 1.009}, ""),
    ("bf16", {"relative_l2": 0.04}, "above 0.03"),
    ("fp8", {"loss": 1.05}, "perplexity is 1.0513 times the reference's, above 1.05"),
    ("int4", {"relative_l2": 0.5, "loss": 1.13}, ""),
    ("int4", {"loss": 1.14}, "perplexity is 1.1503 times the reference's, above 1.15"),
]


@pytest.mark.parametrize(("runtime", "passes"), [("tensorrt", True), ("tensorrt-rtx", True), ("onnx", False)])
def test_what_tensorrt_holds_in_bfloat16_has_a_bound_of_its_own(runtime: str, passes: bool) -> None:
    texts = {"english": text_report(relative_l2=1.9e-2)}
    assert bool(parity.ParityReport("transformers", "fp16", texts, runtime).failures) is not passes


@pytest.mark.parametrize(("precision", "changes", "message"), REPORTS)
def test_the_bounds(precision: str, changes: dict[str, float], message: str) -> None:
    report = parity.ParityReport("transformers", precision, {"english": text_report(**changes)})
    assert report.as_json()["passed"] is not bool(message)
    if message:
        with pytest.raises(ParityError) as caught:
            report.enforce()
        assert message in str(caught.value)
    else:
        report.enforce()


def test_a_failed_gate_keeps_the_artifact_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "one", "llama", seed=1)
    write_checkpoint(tmp_path / "two", "llama", seed=2)
    load = Reference.load
    monkeypatch.setattr(Reference, "load", lambda path: load(tmp_path / "two"))
    with pytest.raises(ParityError):
        export_fp32(tmp_path / "one", tmp_path / "out", max_length=MAX_LENGTH, max_slots=1, check=True)
    assert not (tmp_path / "out").exists()
    export_fp32(tmp_path / "one", tmp_path / "out", max_length=MAX_LENGTH, max_slots=1)
    with pytest.raises(ParityError):
        check_artifact(tmp_path / "out", tmp_path / "one")
    recorded = Manifest.load(tmp_path / "out").parity
    assert recorded is not None
    assert recorded["passed"] is False


def test_a_short_slot_cannot_be_checked(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(ParityError, match="needs a max_length above 64; this artifact has 64"):
        export_fp32(tmp_path / "llama", tmp_path / "out", max_length=64, max_slots=1, check=True)


@pytest.mark.parity
@pytest.mark.parametrize("fixture", ["exact_artifact", "artifact"])
def test_smollm2(fixture: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one thread: another would wait most of the time for a core that runs other tests."""
    monkeypatch.setattr(parity.os, "cpu_count", lambda: 1)
    folder = tmp_path / "smollm2"
    precision = with_limits(request.getfixturevalue(fixture), folder, num_slots=4).precision
    manifest = check_artifact(folder, "smollm2")
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    if precision == "int8":
        assert min(text["top1_agreement"] for text in manifest.parity["texts"].values()) > 0.85


@pytest.mark.parity
def test_smollm2_in_fp16_continues_as_the_reference(tmp_path: Path) -> None:
    """Not the whole gate, which takes minutes in fp16 on a CPU."""
    manifest = export("smollm2", tmp_path / "smollm2", runtime="onnx", precision="fp16", max_slots=2, max_length=256)
    runner = load_runner(tmp_path / "smollm2", manifest, num_threads=2, device="cpu")
    reference = Reference.load(resolve("smollm2")[0])
    ids = parity._encode(tmp_path / "smollm2", manifest.max_length)["english"][:120]
    assert (
        relative(parity.prefill(runner, ids, slot=1), reference.logits(ids)[-1]) < parity.BOUNDS["fp16"]["relative_l2"]
    )
    (answer,) = parity.greedy(runner, [ids[:24]], 16)
    assert parity.greedy_agreement(reference, ids[:24], answer) == 1.0


def test_smollm2_is_the_same_artifact_on_every_machine(artifact: Path) -> None:
    """As AVX-512, AVX2 and portable code made it. It changes with the quantiser and with the program's format alone,
    and then on every machine."""
    files = Manifest.load(artifact).files
    assert files["weights.bin"].sha256 == "f0fbfc04cd3a36edf72802c07c817c081a411f1d8b130ad5b11a1c25b25399e0"
    assert files["program.bin"].sha256 == "91f6afb63717d2f3737f621adcb2960d3c079bec92820830ae55fc735fc84cbf"
