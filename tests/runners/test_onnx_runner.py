"""Steps on ONNX Runtime: any mix of spans, on any slots, gives what each sequence alone would give."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from autoglm_engine.core import Logits, Span, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import MANIFEST_NAME, FileRecord, Manifest
from autoglm_engine.runners.base import run_step
from autoglm_engine.runners.onnx.memory import HostMemory
from autoglm_engine.runners.onnx.runner import OnnxRunner, decode_groups
from autoglm_engine.runners.registry import load_runner
from autoglm_export.errors import UnsupportedModel
from autoglm_export.model.spec import RopeSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.export.tiny_decoders import SPECS, expected_logits, onnx_runner, random_weights

Ids = np.typing.NDArray[np.int32]
SPEC = SPECS["llama"]


def span(slot: int, start: int, ids: Ids, wants_logits: bool = True) -> Span:
    return Span(slot, start, ids, wants_logits)


def step(runner: OnnxRunner, *spans: Span) -> Logits:
    return runner.forward(StepBatch(spans)).copy()


def some_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count).astype(np.int32)


def cache(runner: OnnxRunner) -> Ids:
    assert isinstance(runner.memory, HostMemory)
    return runner.memory.array


def close(actual: Logits, expected: Logits) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=5e-4)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], OnnxRunner]:
    made: dict[tuple[str, str], OnnxRunner] = {}

    def runner(variant: str, precision: str) -> OnnxRunner:
        if (variant, precision) not in made:
            folder, spec = tmp_path_factory.mktemp(variant), SPECS[variant]
            made[variant, precision] = onnx_runner(folder, spec, random_weights(spec), precision=precision)
        return made[variant, precision]

    return runner


@pytest.fixture
def runner(make: Callable[[str, str], OnnxRunner]) -> Iterator[OnnxRunner]:
    return make("llama", "fp32")


@pytest.mark.parametrize("variant", SPECS)
def test_prefill_chunks_and_decode_agree_with_the_reference(
    variant: str, make: Callable[[str, str], OnnxRunner]
) -> None:
    runner, ids = make(variant, "fp32"), some_ids(14)
    expected = expected_logits(SPECS[variant], random_weights(SPECS[variant]), ids)
    close(step(runner, span(0, 0, ids))[0], expected[-1])
    close(step(runner, span(1, 0, ids[:5]))[0], expected[4])
    close(step(runner, span(1, 5, ids[5:6]))[0], expected[5])
    close(step(runner, span(1, 6, ids[6:]))[0], expected[-1])
    for position in range(len(ids)):
        close(step(runner, span(4, position, ids[position : position + 1]))[0], expected[position])


@pytest.mark.parametrize("variant", SPECS)
def test_int8_is_close_to_the_reference(variant: str, make: Callable[[str, str], OnnxRunner]) -> None:
    runner, ids = make(variant, "int8"), some_ids(14)
    expected = expected_logits(SPECS[variant], random_weights(SPECS[variant]), ids)[-1]
    step(runner, span(2, 0, ids[:10], wants_logits=False))
    actual = step(runner, span(2, 10, ids[10:]))[0]
    assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)


def test_a_ragged_batch_equals_one_by_one(runner: OnnxRunner) -> None:
    prompts = [some_ids(count, seed=count) for count in (3, 1, 9, 16)]
    spans = [span(slot, 0, ids) for slot, ids in zip((4, 0, 3, 1), prompts, strict=True)]
    together = step(runner, *spans)
    for row, ids in zip(together, prompts, strict=True):
        close(row, expected_logits(SPEC, random_weights(SPEC), ids)[-1])
    more = [span(s.slot, len(s.token_ids), some_ids(1, seed=s.slot)) for s in spans]
    for row, ids, extra in zip(step(runner, *more), prompts, more, strict=True):
        close(row, expected_logits(SPEC, random_weights(SPEC), np.concatenate([ids, extra.token_ids]))[-1])


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_of_spans_equals_the_reference(runner: OnnxRunner, data: st.DataObject) -> None:
    """Random steps over all slots: each has its own sequence, and takes a random piece of it or none."""
    weights = random_weights(SPEC)
    sequences = {slot: some_ids(24, seed=data.draw(st.integers(0, 99))) for slot in range(5)}
    expected = {slot: expected_logits(SPEC, weights, ids) for slot, ids in sequences.items()}
    done = dict.fromkeys(sequences, 0)
    for _ in range(4):
        slots = data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]
        spans = []
        for slot in slots:
            room = min(16, 24 - done[slot])
            count = data.draw(st.sampled_from([1, 1, 1, 2, 7])) if room else 0
            if piece := sequences[slot][done[slot] : done[slot] + min(count, room)].tolist():
                spans.append(span(slot, done[slot], np.array(piece, np.int32), data.draw(st.booleans())))
                done[slot] += len(piece)
        rows = step(runner, *spans)
        wanting = [s for s in spans if s.wants_logits]
        assert rows.shape == (len(wanting), SPEC.vocab_size)
        for row, s in zip(rows, wanting, strict=True):
            close(row, expected[s.slot][done[s.slot] - 1])


def test_idle_slots_between_keep_their_tokens(runner: OnnxRunner) -> None:
    kept, a, b = some_ids(8, seed=1), some_ids(4, seed=2), some_ids(6, seed=3)
    step(runner, span(0, 0, a[:3]), span(2, 0, kept[:7]), span(4, 0, b[:5]))
    before = cache(runner)[:, :, 2].copy()
    step(runner, span(0, 3, a[3:]), span(4, 5, b[5:]))
    np.testing.assert_array_equal(cache(runner)[:, :, 2], before)
    close(step(runner, span(2, 7, kept[7:]))[0], expected_logits(SPEC, random_weights(SPEC), kept)[-1])


def test_a_full_idle_slot_keeps_its_tokens(runner: OnnxRunner) -> None:
    kept = some_ids(24, seed=4)
    step(runner, span(2, 0, kept[:16], wants_logits=False))
    step(runner, span(2, 16, kept[16:], wants_logits=False))
    before = cache(runner)[:, :, 2].copy()
    step(runner, span(1, 0, kept[:1]), span(3, 0, kept[:1]))
    np.testing.assert_array_equal(cache(runner)[:, :, 2], before)


def test_decode_runs_span_small_gaps_only() -> None:
    one = some_ids(1)
    groups = decode_groups([span(slot, 0, one) for slot in (48, 1, 2, 15, 30)])
    assert [[s.slot for s in group] for group in groups] == [[1, 2, 15], [30], [48]]


def test_copied_prefixes_are_independent(runner: OnnxRunner) -> None:
    ids, other = some_ids(9, seed=5), some_ids(3, seed=6)
    weights = random_weights(SPEC)
    step(runner, span(0, 0, ids[:6], wants_logits=False))
    runner.copy_prefix(0, 3, 4)
    branch = np.concatenate([ids[:4], other])
    close(step(runner, span(3, 4, other))[0], expected_logits(SPEC, weights, branch)[-1])
    close(step(runner, span(0, 6, ids[6:]))[0], expected_logits(SPEC, weights, ids)[-1])


@pytest.mark.parametrize(
    ("slot", "start", "count"), [(0, 24, 1), (0, 20, 5), (0, -1, 2), (5, 0, 1), (-1, 0, 1), (0, 0, 17), (0, 0, 0)]
)
def test_a_span_outside_the_limits_raises_and_changes_nothing(
    runner: OnnxRunner, slot: int, start: int, count: int
) -> None:
    before = cache(runner).copy()
    with pytest.raises(ValueError, match=r"(is|are) not in"):
        step(runner, span(1, 0, some_ids(2)), span(slot, start, some_ids(count)))
    np.testing.assert_array_equal(cache(runner), before)


@pytest.mark.parametrize("variant", ["llama", "qwen3", "glm4"])
def test_in_int8_a_request_computes_the_same_bits_alone_and_in_company(
    variant: str, make: Callable[[str, str], OnnxRunner]
) -> None:
    runner, ids = make(variant, "int8"), some_ids(12, seed=7)

    def answer(company: bool) -> list[bytes]:
        rows = []
        for position in range(len(ids)):
            others = [span(s, position, some_ids(1, seed=s * 31 + position)) for s in (0, 1, 3, 4)] if company else []
            rows.append(step(runner, span(2, position, ids[position : position + 1]), *others)[0].tobytes())
        return rows

    assert answer(company=True) == answer(company=False)


@pytest.mark.slow
def test_steps_copy_no_cache_and_keep_no_memory(tmp_path: Path) -> None:
    """A cache of 80 MB: a single copy a step would show at once."""
    runner = onnx_runner(tmp_path, SPEC, random_weights(SPEC), num_slots=32, max_length=10_000)
    assert cache(runner).nbytes > 80e6
    cache(runner)[:] = 0
    address, process = cache(runner).ctypes.data, psutil.Process()
    spans = [span(slot, 0, some_ids(1)) for slot in range(32)]
    for _ in range(3):
        step(runner, *spans)
    before = process.memory_info().rss
    for _ in range(20):
        step(runner, *spans)
    assert process.memory_info().rss - before < 10e6
    assert cache(runner).ctypes.data == address
    assert cache(runner)[:, :, :, :, 0].any(axis=(0, 1, 3, 4)).all(), "every slot's first token was written in place"


def test_a_rope_that_the_kernel_lacks_is_refused(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, rope=RopeSpec(1e4, 8, interleaved=False))
    with pytest.raises(UnsupportedModel, match="rope turns 8 dimensions; ONNX Runtime turns multiples of 16"):
        onnx_runner(tmp_path, spec, random_weights(spec))


def test_loading_refuses_another_version_and_damaged_files(tmp_path: Path) -> None:
    onnx_runner(tmp_path, SPEC, random_weights(SPEC)).close()
    manifest = Manifest.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"exported for onnxruntime 1\.2\.0, this machine has .*; export it again"):
        load_runner(tmp_path, dataclasses.replace(manifest, runtime_version="1.2.0"), num_threads=1)
    with pytest.raises(ArtifactError, match="runtime is 'abacus'"):
        load_runner(tmp_path, dataclasses.replace(manifest, runtime="abacus"), num_threads=1)
    (tmp_path / "model.onnx").write_bytes(b"\0" * manifest.files["model.onnx"].bytes)
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that was exported"):
        load_runner(tmp_path, manifest, num_threads=1)
    listed = manifest.files | {"model.onnx": FileRecord.of(tmp_path / "model.onnx")}
    with pytest.raises(ArtifactError, match=r"model\.onnx cannot be loaded by ONNX Runtime"):
        load_runner(tmp_path, dataclasses.replace(manifest, files=listed), num_threads=1)
    (tmp_path / "model.onnx").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match="has 1 bytes"):
        load_runner(tmp_path, manifest, num_threads=1)
    assert json.loads((tmp_path / MANIFEST_NAME).read_text())["runtime"] == "onnx"


@pytest.mark.parametrize(
    ("variant", "layers", "factor"),
    [
        ("llama", ("query", "key"), 1e20),
        ("llama", ("gate", "up"), 3e20),
        ("glm4", ("query", "key"), 1e20),
        ("glm4", ("gate", "up"), 3e20),
        ("qwen3", ("value",), 3e37),
        ("qwen3", ("output",), 3e37),
    ],
)
def test_what_is_no_number_in_float32_is_none_in_int8(
    variant: str, layers: tuple[str, ...], factor: float, tmp_path: Path
) -> None:
    """ReduceMax and integers drop a NaN, and zeros or any other numbers would be left of it."""
    weights = random_weights(SPECS[variant])
    for layer in layers:
        weights[f"layers.0.{layer}.weight"] *= np.float32(factor)
    for precision in ("fp32", "int8"):
        (tmp_path / precision).mkdir()
        runner = onnx_runner(tmp_path / precision, SPECS[variant], weights, precision=precision)
        found = run_step(runner, StepBatch((Span(0, 0, np.arange(5, 12, dtype=np.int32), True),)))
        runner.close()
        assert not np.isfinite(found).any(), precision


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_token_that_is_no_number_ends_what_follows_it_in_its_slot_and_nothing_else(
    precision: str, tmp_path: Path
) -> None:
    """Its keys and values are none either, and stay in the slot when the next sequence has it, beside a longer one."""
    spec, broken = SPECS["glm4"], 13
    weights = random_weights(spec)
    weights["embed"][:, 0], weights["embed"][broken] = 0, np.eye(1, spec.hidden_size)
    weights["layers.0.post_attention_norm"][0] = 0  # so that number 0 of the stream is the broken token's alone
    for layer in ("gate", "up"):
        weights[f"layers.0.{layer}.weight"][:, 0] = 1e25
    runner = onnx_runner(tmp_path, spec, weights, precision=precision)
    good, bad = np.array([5, 6, 7, 8, 9, 10], np.int32), np.array([5, broken, 7, 8, 9, 10], np.int32)
    long = np.arange(20, 36, dtype=np.int32)

    def step(*spans: Span) -> Logits:
        return run_step(runner, StepBatch(spans)).copy()

    expected, expected_long = step(Span(0, 0, good, True)), step(Span(0, 0, long, True))
    assert np.isfinite(expected).all() and np.isfinite(expected_long).all()
    together = step(Span(1, 0, bad, True), Span(2, 0, good, True), Span(3, 0, long, True))
    assert not np.isfinite(together[0]).any()
    np.testing.assert_array_equal(together[1:], np.concatenate([expected, expected_long]))
    follows, beside = step(Span(1, 6, good[:1], True), Span(2, 6, good[:1], True))
    assert not np.isfinite(follows).any() and np.isfinite(beside).all()
    step(Span(1, 0, good[:2], False), Span(3, 16, long[:1], True))
    after = step(Span(1, 2, good[2:3], True), Span(2, 2, good[2:3], True), Span(3, 17, long[:1], True))
    assert np.isfinite(after).all()
    runner.close()
