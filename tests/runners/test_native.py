"""The native CPU runtime: its numbers against plain numpy, on every class of CPUs, with any number of threads."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_cli import app
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import CacheShape, FileRecord, Manifest
from autoglm_engine.runners.native.library import TARGET_VARIABLE, choose_library
from autoglm_engine.runners.native.program import PANEL, PROGRAM_FORMAT
from autoglm_engine.runners.native.runner import NativeRunner
from autoglm_export import compiler
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.errors import ExportError, InvalidOption
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.native.libraries import Libraries
from autoglm_export.native.lowering import MAX_LOGITS_PER_SPAN, write_native, write_program
from autoglm_export.native.program import interleave, mix_columns, mixed_vectors, pack_panels, quantise_columns
from autoglm_export.parity.gate import teacher_forced
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.support.export.native_builds import ALL_CLASSES, library
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.odd_shapes import ODD_SHAPES

pytestmark = pytest.mark.parity

VOCAB_SIZE = 101  # not a multiple of anything
NUM_SLOTS, MAX_LENGTH, CHUNK = 5, 300, 96
HEADER_FIELDS, SCALES_FIELD = 15, 7  # of program.bin, and of each operation in it
LIBRARY_NAME = "decoder.so"
TARGETS = [target.name for target in compiler.runnable_targets()]  # the best first
BASE = ModelSpec(
    family="llama",
    vocab_size=VOCAB_SIZE,
    hidden_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=80,
    norm_eps=1e-5,
    rope=RopeSpec(theta=10000.0, dims=16, interleaved=False),
    max_position=512,
)
PARTIAL = RopeSpec(theta=10000.0, dims=16, interleaved=True)
SPECS = {
    "grouped": BASE,
    "biases, tied": dataclasses.replace(BASE, qkv_bias=True, output_bias=True, mlp_bias=True, tied_embeddings=True),
    "head norms, one kv head": dataclasses.replace(
        BASE, qk_norm=True, num_kv_heads=1, head_size=24, rope=RopeSpec(theta=1e6, dims=24, interleaved=False)
    ),
    "sandwich, partial interleaved rope": dataclasses.replace(BASE, sandwich_norm=True, head_size=32, rope=PARTIAL),
    "sandwich, tied, head norms": dataclasses.replace(
        BASE, sandwich_norm=True, tied_embeddings=True, qk_norm=True, head_size=32, rope=PARTIAL
    ),
    "no groups, head size 80": dataclasses.replace(BASE, num_heads=2, head_size=80, qkv_bias=True),
    "head size 256": dataclasses.replace(BASE, num_heads=4, num_kv_heads=2, head_size=256, rope=PARTIAL, num_layers=1),
    "wide groups": dataclasses.replace(BASE, num_heads=56, num_kv_heads=1, num_layers=1),
}
SHAPES = {**SPECS, **ODD_SHAPES}


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Any:
        if name.endswith("norm"):
            return 1 + 0.3 * random.standard_normal(shape)
        return random.standard_normal(shape) * (0.3 if name.endswith("bias") else shape[-1] ** -0.5)

    return {name: draw(name, shape).astype(np.float32) for name, shape in weight_shapes(spec).items()}


@pytest.fixture(autouse=True)
def no_target_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests name their libraries themselves."""
    monkeypatch.delenv(TARGET_VARIABLE, raising=False)


@pytest.fixture(scope="session")
def libraries() -> Mapping[str, Path]:
    """The decoder, compiled for each class of CPUs that this machine belongs to."""
    return {target.name: library(target.name) for target in compiler.runnable_targets()}


@pytest.fixture(scope="session")
def best(libraries: Mapping[str, Path]) -> Path:
    return libraries[TARGETS[0]]


def manifest_of(spec: ModelSpec, **details: Any) -> Manifest:
    return Manifest(
        model_name="tiny",
        family=spec.family,
        runtime="native",
        runtime_version="0",
        precision="int8",
        num_slots=NUM_SLOTS,
        max_length=MAX_LENGTH,
        prefill_chunk=CHUNK,
        vocab_size=spec.vocab_size,
        cache=CacheShape(spec.num_layers, spec.num_kv_heads, spec.head_size, "bfloat16"),
        eos_token_ids=(0,),
        bos_token_id=None,
        generation_defaults={},
        spec=spec.as_json(),
        runtime_details={
            "program_format": PROGRAM_FORMAT,
            "libraries": {"any": {"file": LIBRARY_NAME, "cpu_features": []}},
            "program": "program.bin",
            "weights": "weights.bin",
            "max_logits_per_span": MAX_LOGITS_PER_SPAN,
            **details,
        },
    )


def build(
    folder: Path,
    spec: ModelSpec,
    decoder: Path,
    num_threads: int = 2,
    weights: Mapping[str, Any] | None = None,
    texts: Sequence[Any] = (),
) -> NativeRunner:
    folder.mkdir(exist_ok=True)
    write_program(spec, weights or random_weights(spec), folder, texts)
    (folder / LIBRARY_NAME).write_bytes(decoder.read_bytes())
    return NativeRunner(folder, manifest_of(spec), num_threads=num_threads)


@pytest.fixture
def runner(tmp_path: Path, best: Path) -> Iterator[NativeRunner]:
    native = build(tmp_path, BASE, best)
    yield native
    native.close()


def random_ids(length: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).astype(np.int32)


def step(runner: Any, *spans: Span) -> Any:
    return runner.forward(StepBatch(spans)).copy()


def in_chunks(runner: Any, ids: Any, slot: int, sizes: list[int]) -> Any:
    """Logits after each chunk; the last size is repeated."""
    rows, start = [], 0
    while start < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        rows.append(step(runner, Span(slot, start, ids[start : start + size], True))[0])
        start += size
    return rows


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_those_of_numpy(name: str, target: str, tmp_path: Path, libraries: Mapping[str, Path]) -> None:
    """Ragged steps of prefill chunks and single tokens, with a prefix of another slot, within int8's error."""
    spec = SHAPES[name]
    native = build(tmp_path, spec, libraries[target])
    plain = NumpyRunner(spec, random_weights(spec), num_slots=NUM_SLOTS, max_length=MAX_LENGTH, prefill_chunk=CHUNK)
    ids = random_ids(90) % spec.vocab_size
    actual, expected = [], []
    for each, rows in ((native, actual), (plain, expected)):
        rows.append(step(each, Span(0, 0, ids[:40], True), Span(3, 0, ids[50:57], False)))
        rows.append(step(each, Span(3, 7, ids[57:58], True), Span(0, 40, ids[40:], True), Span(1, 0, ids[:1], True)))
        each.copy_prefix(0, 2, 33)
        rows.append(step(each, Span(2, 33, ids[:20], True), Span(3, 8, ids[58:90], True)))
    native.close()
    assert [len(rows) for rows in actual] == [1, 3, 2]
    assert relative(np.concatenate(actual), np.concatenate(expected)) < 0.06


@pytest.mark.parametrize("name", SPECS)
def test_fitted_weights_are_closer(name: str, tmp_path: Path, best: Path) -> None:
    """Rows that share a mean, as a trained model's do; also where biases, ropes and tied tables meet that mean."""
    spec, ids, errors = SPECS[name], random_ids(60), []
    weights = random_weights(spec)
    weights["embed"] += 2 * np.abs(weights["embed"][0])
    (expected,) = teacher_forced(NumpyRunner(spec, weights, max_length=MAX_LENGTH), [ids])
    for folder, sample in ((tmp_path / "plain", []), (tmp_path / "fitted", [random_ids(200, 5), random_ids(200, 6)])):
        native = build(folder, spec, best, weights=weights, texts=sample)
        (actual,) = teacher_forced(native, [ids])
        native.close()
        errors.append(relative(actual, expected))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", SHAPES)
def test_every_class_of_cpus_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    """Bit for bit, with any number of threads, in prefill and in steps of one token."""
    ids, rows = random_ids(200) % SHAPES[name].vocab_size, {}
    for target in ALL_CLASSES:
        for num_threads in (1, 2):
            native = build(tmp_path / f"{target}-{num_threads}", SHAPES[name], library(target), num_threads)
            rows[target, num_threads] = np.array(in_chunks(native, ids, 0, [90, 90, 1]))
            native.close()
    expected = rows["portable", 1]
    for made in rows.values():
        np.testing.assert_array_equal(made, expected)


def in_chunks_from(runner: Any, ids: Any, slot: int, start: int) -> list[Any]:
    """Logits of the tokens from `start` on, one at a time."""
    return [step(runner, Span(slot, place, ids[place : place + 1], True))[0] for place in range(start, len(ids))]


@pytest.mark.parametrize("num_drafts", [-1, 4, MAX_LOGITS_PER_SPAN])
def test_more_drafts_than_a_span_may_have_are_refused(runner: NativeRunner, num_drafts: int) -> None:
    length = 4 if num_drafts <= 4 else CHUNK
    with pytest.raises(ValueError, match=f"{num_drafts} drafts of {length} tokens are not in 0"):
        step(runner, Span(0, 0, random_ids(length), True, num_drafts=num_drafts))


def test_a_token_does_not_depend_on_the_number_of_threads(tmp_path: Path, best: Path) -> None:
    ids = random_ids(150)
    rows = []
    for num_threads in (1, 2, 3):
        native = build(tmp_path / str(num_threads), BASE, best, num_threads)
        rows.append(in_chunks(native, ids, 0, [CHUNK, 40, 1]))
        native.close()
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_the_first_token_of_a_sequence_is_more_exact(runner: NativeRunner) -> None:
    """Every token of a sequence of equal ones has the same true logits, and meets the same weights."""
    expected_runner = NumpyRunner(BASE, random_weights(BASE), max_length=MAX_LENGTH)
    first, later = [], []
    for token in range(40):
        ids = np.full(9, token, np.int32)
        expected = step(expected_runner, Span(0, 0, ids[:1], True))
        first.append(relative(step(runner, Span(0, 0, ids[:1], True)), expected))
        later.append(relative(step(runner, Span(1, 0, ids, True)), expected))
    assert np.mean(first) < 0.9 * np.mean(later)


def test_values_that_are_not_finite_stay_with_their_request(tmp_path: Path, best: Path) -> None:
    """A broken row must not poison its slot for the next sequence, nor its batch."""
    write_program(BASE, random_weights(BASE), tmp_path)
    scales = int(np.fromfile(tmp_path / "program.bin", np.int64)[HEADER_FIELDS + SCALES_FIELD])  # of the embedding
    table = np.memmap(tmp_path / "weights.bin", np.float32, "r+", scales, (VOCAB_SIZE,))
    table[13] = np.nan
    table.flush()
    (tmp_path / LIBRARY_NAME).write_bytes(best.read_bytes())
    native = NativeRunner(tmp_path, manifest_of(BASE), num_threads=2)
    good, bad = np.full(30, 5, np.int32), np.full(30, 13, np.int32)
    expected = step(native, Span(0, 0, good, True))
    together = step(native, Span(1, 0, bad, True), Span(2, 0, good, True))
    assert np.isnan(together[0]).all()
    np.testing.assert_array_equal(together[1:], expected)
    np.testing.assert_array_equal(step(native, Span(1, 0, good[:9], False), Span(2, 0, good, True)), expected)
    np.testing.assert_array_equal(in_chunks(native, good, 1, [9])[-1], expected[0])
    native.close()


OVERFLOWS = {
    "values": (("value",), 3e37),
    "scores": (("query", "key"), 1e20),
    "gated": (("gate", "up"), 3e20),
    "the stream": (("output",), 3e37),
}
BROKEN_SPECS = ["grouped", "sandwich, tied, head norms", "no groups, head size 80"]


@pytest.mark.parametrize("library", TARGETS)
@pytest.mark.parametrize("spec", BROKEN_SPECS)
@pytest.mark.parametrize("case", OVERFLOWS)
def test_what_overflows_inside_is_no_number_at_the_end(
    case: str, spec: str, library: str, libraries: Mapping[str, Path], tmp_path: Path
) -> None:
    layers, factor = OVERFLOWS[case]
    weights = random_weights(SPECS[spec])
    for layer in layers:
        weights[f"layers.0.{layer}.weight"] *= np.float32(factor)
    native = build(tmp_path, SPECS[spec], libraries[library], weights=weights)
    assert not np.isfinite(step(native, Span(0, 0, random_ids(20), True))).any()
    native.close()


@pytest.mark.parametrize("library", TARGETS)
@pytest.mark.parametrize("spec", BROKEN_SPECS)
def test_a_broken_token_ends_what_follows_it_in_its_slot_and_nothing_else(
    spec: str, library: str, libraries: Mapping[str, Path], tmp_path: Path
) -> None:
    """Also where the logits are wanted of a later token, which reads of the broken one what the cache made of it."""
    weights = random_weights(SPECS[spec])
    weights["embed"][13] *= np.float32(1e38)
    native = build(tmp_path, SPECS[spec], libraries[library], weights=weights)
    good, bad = np.array([5, 6, 7, 8, 9, 10], np.int32), np.array([5, 13, 7, 8, 9, 10], np.int32)
    expected = step(native, Span(0, 0, good, True))
    assert np.isfinite(expected).all()
    together = step(native, Span(1, 0, bad, True), Span(2, 0, good, True))
    assert np.isnan(together[0]).all()
    np.testing.assert_array_equal(together[1:], expected)
    later = step(native, Span(1, 6, good[:1], True), Span(2, 6, good[:1], True))
    assert np.isnan(later[0]).all() and np.isfinite(later[1]).all()
    native.copy_prefix(1, 3, 4)
    assert np.isnan(step(native, Span(3, 4, good[4:], True))).all(), "a copy knows what it holds"
    native.copy_prefix(1, 3, 1)
    np.testing.assert_array_equal(step(native, Span(3, 1, good[1:], True)), expected)
    np.testing.assert_array_equal(step(native, Span(1, 1, good[1:], True)), expected)
    np.testing.assert_array_equal(in_chunks(native, good, 1, [2])[-1], expected[0])
    native.close()


def test_no_logits_are_computed_where_none_are_wanted(runner: NativeRunner) -> None:
    assert step(runner, Span(0, 0, random_ids(5), False)).shape == (0, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(NUM_SLOTS, 0, random_ids(1), True)], "slot 5 is not in 0 ... 4"),
        ([Span(-1, 0, random_ids(1), True)], "slot -1 is not in 0 ... 4"),
        ([Span(0, MAX_LENGTH - 3, random_ids(4), True)], "positions 297 ... 300 are not in 0 ... 299"),
        ([Span(0, -1, random_ids(4), True)], "positions -1 ... 2 are not in 0 ... 299"),
        ([Span(0, 0, random_ids(CHUNK + 1), True)], "a span of 97 tokens is not in 1 ... 96"),
        ([Span(0, 0, random_ids(0), True)], "a span of 0 tokens is not in 1 ... 96"),
        ([Span(0, 0, np.array([VOCAB_SIZE], np.int32), True)], "not in 0 ... 100"),
        ([Span(0, 0, np.array([-1], np.int32), True)], "not in 0 ... 100"),
        ([Span(1, 0, random_ids(1), True), Span(1, 1, random_ids(1), True)], "a slot appears twice in one step"),
        ([], "a step needs at least one span"),
    ],
)
def test_a_step_out_of_range_raises_and_writes_nothing(runner: NativeRunner, spans: list[Span], message: str) -> None:
    ids = random_ids(MAX_LENGTH)
    in_chunks(runner, ids[:-1], 0, [CHUNK])
    last = Span(0, MAX_LENGTH - 1, ids[-1:], True)
    expected = step(runner, last)
    with pytest.raises(ValueError, match=message):
        step(runner, last, *spans) if spans and spans[0].slot == 1 else step(runner, *spans)
    np.testing.assert_array_equal(step(runner, last), expected)


def test_a_prefix_out_of_range_raises(runner: NativeRunner) -> None:
    with pytest.raises(ValueError, match="slot 9 is not in"):
        runner.copy_prefix(0, 9, 4)
    with pytest.raises(ValueError, match="a prefix of 301 tokens is not in"):
        runner.copy_prefix(0, 1, MAX_LENGTH + 1)


def test_a_closed_runner_says_so(runner: NativeRunner) -> None:
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="the runner is closed"):
        step(runner, Span(0, 0, random_ids(1), True))


def test_a_cpu_that_runs_no_library_is_refused(tmp_path: Path) -> None:
    """Before anything is loaded: the folder is empty."""
    libraries = {"quantum": {"file": LIBRARY_NAME, "cpu_features": ["sse2", "amx_quantum"]}}
    with pytest.raises(
        ArtifactError, match=r"^this CPU runs none .* \(quantum needs amx_quantum\); export it again on"
    ):
        NativeRunner(tmp_path, manifest_of(BASE, libraries=libraries))


LIBRARIES = {target.name: {"cpu_features": target.cpu_features} for target in compiler.TARGETS}


@pytest.mark.parametrize("target", compiler.TARGETS, ids=lambda target: target.name)
def test_the_best_library_that_a_cpu_runs_is_loaded(target: compiler.Target) -> None:
    assert choose_library(LIBRARIES, target.cpu_features, "") == target.name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("avx512-bf16", r"is 'avx512-bf16', but this CPU lacks avx512_bf16, avx512_vnni, .*; it runs avx2, portable"),
        ("avx9", "is 'avx9'; the artifact has avx512-bf16, avx512-vnni, avx2, portable"),
    ],
)
def test_a_library_that_cannot_be_had_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"{TARGET_VARIABLE} {message}"):
        choose_library(LIBRARIES, compiler.TARGETS[2].cpu_features, wanted)


def test_a_named_library_is_loaded() -> None:
    assert choose_library(LIBRARIES, compiler.TARGETS[0].cpu_features, "avx2") == "avx2"


def test_the_digest_counts_a_library_by_its_sources() -> None:
    """Not by what a compiler made of them; with other sources, or other weights, it is another artifact."""

    def digest(sources: str, **files: str) -> str:
        records = {name.replace("_", "."): FileRecord(1, sha) for name, sha in files.items()}
        details = {"libraries": {"any": {"file": "decoder.so", "cpu_features": []}}, "library_sources": sources}
        return dataclasses.replace(manifest_of(BASE, **details), files=records).digest

    expected = digest("a", decoder_so="1", weights_bin="2")
    assert expected == digest("a", decoder_so="9", weights_bin="2") == digest("a", weights_bin="2")
    assert expected != digest("b", decoder_so="1", weights_bin="2")
    assert expected != digest("a", decoder_so="1", weights_bin="9")


def test_an_artifact_holds_every_class_of_cpus(tmp_path: Path) -> None:
    with Libraries.building() as building:
        written = building.write(tmp_path)
    assert list(written) == [target.name for target in compiler.TARGETS]
    for target in compiler.TARGETS:
        assert written[target.name]["cpu_features"] == list(target.cpu_features)
        assert (tmp_path / written[target.name]["file"]).read_bytes().startswith(b"\x7fELF")


def test_another_program_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has format 99, this engine runs 3; export it again"):
        NativeRunner(tmp_path, manifest_of(BASE, program_format=99))


def test_a_damaged_library_is_refused(tmp_path: Path) -> None:
    write_program(BASE, random_weights(BASE), tmp_path)
    (tmp_path / LIBRARY_NAME).write_bytes(b"not a library")
    with pytest.raises(ArtifactError, match=r"decoder\.so cannot be loaded"):
        NativeRunner(tmp_path, manifest_of(BASE))


def test_only_int8_is_offered(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="no precision 'fp4'; it computes in int8"):
        write_native(BASE, {}, tmp_path, precision="fp4", num_slots=1, max_length=8, prefill_chunk=8)


def test_the_best_target_is_one_that_runs() -> None:
    newest = compiler.TARGETS[0]
    assert compiler.runnable_targets(newest.cpu_features)[0] is newest
    assert compiler.runnable_targets(set(newest.cpu_features) - {"avx512_bf16"})[0].name == "avx512-vnni"
    assert compiler.runnable_targets(set(newest.cpu_features) - {"avx512_vnni"})[0].name == "avx2"
    assert [target.name for target in compiler.runnable_targets([])] == ["portable"]


def test_a_target_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, "portable")
    assert compiler.chosen_target().name == "portable"
    monkeypatch.setenv(TARGET_VARIABLE, "avx9")
    with pytest.raises(InvalidOption, match=rf"^{TARGET_VARIABLE} is 'avx9'; this CPU runs .*portable"):
        compiler.chosen_target()


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(
        ExportError, match=r"needs a C\+\+ compiler: install g\+\+ or clang\+\+, or `pip install ziglang`"
    ):
        compiler.find_compiler()


def test_zig_gets_its_own_names_of_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "zig"
    script.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"{script} ziglang c++")
    with pytest.raises(ExportError, match="-march=x86_64_v4 -mavx512vnni -mavx512bf16"):
        compiler.build(compiler.DECODER_SOURCE, compiler.TARGETS[0])


def test_a_failing_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\necho 'error: no space left' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(ExportError, match=r"could not build decoder\.cpp: error: no space left"):
        compiler.build(compiler.DECODER_SOURCE, compiler.TARGETS[-1])


def test_what_was_built_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For the same sources, options and compiler; in the user's own folder."""
    script = tmp_path / "cxx"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\necho run >>'
        + str(tmp_path / "runs")
        + '\nwhile [ "$1" != -o ]; do shift; done\n: >"$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = compiler.build(compiler.DECODER_SOURCE, compiler.TARGETS[-1])
    assert compiler.build(compiler.DECODER_SOURCE, compiler.TARGETS[-1]) == first
    assert compiler.build(compiler.DECODER_SOURCE, compiler.TARGETS[-1], extra_options=["-g"]) != first
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert first.parent.stat().st_mode & 0o077 == 0


def test_what_another_is_building_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, go, runs = (tmp_path / name for name in ("cxx", "go", "runs"))
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho run >>{runs}\nuntil [ -e {go} ]; do sleep 0.01; done\n'
        'while [ "$1" != -o ]; do shift; done\n: >"$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(compiler.build, compiler.DECODER_SOURCE, compiler.TARGETS[-1]) for _ in range(2)]
        wait(both, timeout=0.3)  # long enough for both to begin, where both would
        go.touch()
    assert both[0].result() == both[1].result()
    assert runs.read_text() == "run\n"


@settings(deadline=None, max_examples=30)
@given(columns=st.integers(1, 3), inputs=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_packing_loses_only_half_a_step(columns: int, inputs: int, seed: int) -> None:
    """Packed bytes, read back as the kernel reads them, are the weights within half a quantisation step."""
    weight = np.random.default_rng(seed).standard_normal((columns * PANEL, inputs * PANEL)).astype(np.float32)
    weight[1] = 0
    values, scales = quantise_columns(weight)
    packed = pack_panels(values)
    for column, row in ((0, 0), (1, 3), (columns * PANEL - 1, inputs * PANEL - 1), (17, 5)):
        byte = int(packed[column // PANEL, row // 4, column % PANEL, row % 4])
        assert abs((byte - 128) * scales[column] - weight[column, row]) <= scales[column] * 0.5001


@settings(deadline=None, max_examples=30)
@given(panels=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_mixing_keeps_every_product(panels: int, seed: int) -> None:
    """Rows that are mixed as the kernel does it, times mixed weights, are what they were unmixed."""
    random = np.random.default_rng(seed)
    row, weight = random.standard_normal(panels * PANEL), random.standard_normal((4, panels * PANEL)).astype(np.float32)
    block = mixed_vectors(panels * PANEL)
    mixed = row.reshape(-1, block, 16)
    half = 1
    while half < block:  # butterflies over vectors
        pairs = mixed.reshape(len(mixed), -1, 2, half, 16)
        mixed = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(
            mixed.shape
        )
        half *= 2
    np.testing.assert_allclose(mix_columns(weight) @ mixed.ravel(), weight @ row, rtol=1e-3, atol=1e-3)


def test_gate_and_up_alternate_by_sixteen_rows() -> None:
    gate, up = np.arange(32, dtype=np.float32)[:, None], 100 + np.arange(32, dtype=np.float32)[:, None]
    rows = interleave(gate, up).ravel()
    np.testing.assert_array_equal(rows, [*range(16), *range(100, 116), *range(16, 32), *range(116, 132)])


def test_inspect_says_which_library_this_cpu_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(BASE, libraries={name: {**entry, "file": LIBRARY_NAME} for name, entry in LIBRARIES.items()}).save(
        tmp_path
    )
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert f"avx512-bf16, avx512-vnni, avx2, portable; this CPU loads {TARGETS[0]}" in " ".join(result.stdout.split())
    monkeypatch.setenv(TARGET_VARIABLE, "avx9")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert f"{TARGET_VARIABLE} is 'avx9'; the artifact has" in " ".join(result.stdout.split())
