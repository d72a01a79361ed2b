"""Spans with images on the runners that take them: features in place of embeddings, and three positions a token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import CacheShape, Manifest
from autoglm_engine.runners.native.program import (
    HEADER_FIELDS,
    IMAGE_PROGRAM_FORMAT,
    OPERATION_FIELDS,
    PROGRAM_FORMAT,
    Code,
    Operation,
)
from autoglm_engine.runners.native.runner import MAX_ROWS, NativeRunner
from autoglm_engine.runners.onnx.device import open_memory
from autoglm_engine.runners.onnx.runner import OnnxRunner
from autoglm_engine.runners.registry import load_runner
from autoglm_export.model.spec import ModelSpec, RopeSpec
from autoglm_export.native.lowering import MAX_LOGITS_PER_SPAN, write_program
from autoglm_export.quantize.rotation import Rotation, stream_rotation
from autoglm_export.runtimes import image_details

from tests.support.export.image_prompts import GLM, QWEN, ImagePrompt
from tests.support.export.native_builds import ALL_CLASSES, library
from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_decoders import onnx_runner, random_weights
from tests.support.tensorrt.fake_gpu import CUDA, FakeCudaSession, FakeGpu

pytestmark = pytest.mark.parity

NUM_SLOTS, MAX_LENGTH, CHUNK = 4, 200, 96
SPECS = {
    "as glm4v": GLM,
    "halves, head norms, no columns": dataclasses.replace(
        GLM, rope=RopeSpec(1e4, 32, interleaved=False, sections=(5, 11, 0)), qk_norm=True, tied_embeddings=True
    ),
    "as qwen3_vl": QWEN,
}
WIDEST = max(spec.feature_size for spec in SPECS.values())
PROMPT = ImagePrompt.random([5, (3, 4), 7, (2, 2), (1, 3), 30, (5, 6), 8], GLM.vocab_size, WIDEST)
OTHER = ImagePrompt.random([2, (7, 2), 40], GLM.vocab_size, WIDEST, seed=1)
LENGTH, IN_IMAGE = len(PROMPT.ids), 5 + 7  # a place inside of the first image
TEXT = np.random.default_rng(3).integers(0, GLM.vocab_size, 40).astype(np.int32)


def native_runner(
    folder: Path, spec: ModelSpec, target: str = ALL_CLASSES[0], num_threads: int = 2, **details: Any
) -> NativeRunner:
    folder.mkdir(exist_ok=True)
    write_program(spec, random_weights(spec), folder)
    return open_native(folder, spec, target, num_threads, **details)


def open_native(folder: Path, spec: ModelSpec, target: str, num_threads: int = 2, **details: Any) -> NativeRunner:
    (folder / f"{target}.so").write_bytes(library(target).read_bytes())
    manifest = Manifest(
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
            "program_format": IMAGE_PROGRAM_FORMAT if spec.takes_images else PROGRAM_FORMAT,
            "libraries": {"any": {"file": f"{target}.so", "cpu_features": []}},
            "program": "program.bin",
            "weights": "weights.bin",
            "max_logits_per_span": MAX_LOGITS_PER_SPAN,
            **image_details(spec),
            **details,
        },
    )
    return NativeRunner(folder, manifest, num_threads=num_threads)


def fp32_runner(folder: Path, spec: ModelSpec) -> Any:
    limits = {"num_slots": NUM_SLOTS, "max_length": MAX_LENGTH, "prefill_chunk": CHUNK}
    return onnx_runner(folder, spec, random_weights(spec), **limits)


@pytest.fixture(scope="module", params=["as glm4v", "as qwen3_vl"])
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def prompt(spec: ModelSpec) -> ImagePrompt:
    return seen(PROMPT, spec)


@pytest.fixture(scope="module")
def native(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeRunner]:
    runner = native_runner(tmp_path_factory.mktemp("native"), spec)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def onnx(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    runner = fp32_runner(tmp_path_factory.mktemp("onnx"), spec)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def whole(native: NativeRunner, prompt: ImagePrompt) -> Any:
    """The native runner's logits after each token of the prompt, of one token a step."""
    return in_steps(native, prompt, 0, [1])


def rotation_of(spec: ModelSpec) -> Rotation | None:
    return stream_rotation(spec.hidden_size, sandwich_norm=spec.sandwich_norm)


def seen(prompt: ImagePrompt, spec: ModelSpec, *, rotated: bool = False) -> ImagePrompt:
    """With features of the spec's size, as a decoder reads them whose stream is rotated, or not."""
    features, rotation = prompt.features[:, : spec.feature_size], rotation_of(spec) if rotated else None
    return dataclasses.replace(prompt, features=features if rotation is None else rotation.features(features))


def step(runner: Any, *spans: Span) -> Any:
    return runner.forward(StepBatch(spans)).copy()


def in_steps(runner: Any, prompt: ImagePrompt, slot: int, sizes: list[int]) -> Any:
    return np.concatenate([step(runner, span) for span in prompt.chunks(slot, sizes)])


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def ragged_steps(runner: Any, spec: ModelSpec, *, rotated: bool = False) -> Any:
    """Chunks that end inside of images, texts beside them, single tokens of images with idle slots between, and a
    prefix that ends inside of an image."""
    prompt, other = (seen(each, spec, rotated=rotated) for each in (PROMPT, OTHER))
    rows = [
        step(runner, prompt.span(0, 0, IN_IMAGE), other.span(1, 0, 5), Span(3, 0, TEXT[:9], True)),
        step(runner, prompt.span(0, IN_IMAGE, IN_IMAGE + 1), other.span(1, 5, 6), Span(3, 9, TEXT[9:10], True)),
        step(runner, other.span(1, 6, 56), prompt.span(0, IN_IMAGE + 1, 40)),
        step(runner, Span(3, 10, TEXT[10:11], True), prompt.span(0, 40, 41)),
    ]
    runner.copy_prefix(0, 2, IN_IMAGE)
    rows.append(step(runner, prompt.span(2, IN_IMAGE, 60), prompt.span(0, 41, 60)))
    rows.append(step(runner, prompt.span(0, 60, LENGTH), Span(3, 11, TEXT[11:], True)))
    return np.concatenate(rows)


@pytest.mark.parametrize("make", [native_runner, fp32_runner])
@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_of_numpy(make: Callable[..., Any], name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    plain = NumpyRunner(spec, random_weights(spec), num_slots=NUM_SLOTS, max_length=MAX_LENGTH, prefill_chunk=CHUNK)
    runner = make(tmp_path, spec)
    actual = ragged_steps(runner, spec, rotated=make is native_runner)
    expected = ragged_steps(plain, spec)
    runner.close()
    assert relative(actual, expected) < (0.06 if make is native_runner else 1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_take_images(spec: ModelSpec, precision: str, tmp_path: Path) -> None:
    weights, limits = random_weights(spec), {"num_slots": NUM_SLOTS, "max_length": MAX_LENGTH, "prefill_chunk": CHUNK}
    runner = onnx_runner(tmp_path, spec, weights, precision=precision, **limits)
    actual = ragged_steps(runner, spec, rotated=precision == "int8")
    runner.close()
    expected = ragged_steps(NumpyRunner(spec, weights, **limits), spec)
    assert relative(actual, expected) < (2e-3 if precision == "fp16" else 0.06)


@pytest.mark.parametrize("name", SPECS)
def test_every_class_of_cpus_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    rows = []
    write_program(SPECS[name], random_weights(SPECS[name]), tmp_path)
    for target in ALL_CLASSES:
        runner = open_native(tmp_path, SPECS[name], target)
        rows.append(ragged_steps(runner, SPECS[name]))
        runner.close()
    for made in rows[1:]:
        np.testing.assert_array_equal(made, rows[0])


@pytest.mark.parametrize("sizes", [[96], [9, 96], [17, 1, 1, 30], [7]])
def test_a_token_does_not_depend_on_how_its_image_is_cut(
    native: NativeRunner, prompt: ImagePrompt, whole: Any, sizes: list[int]
) -> None:
    ends = [span.start + len(span.token_ids) - 1 for span in prompt.chunks(1, sizes)]
    np.testing.assert_array_equal(in_steps(native, prompt, 1, sizes), whole[ends])


def test_a_token_does_not_depend_on_the_others_of_its_step(
    native: NativeRunner, prompt: ImagePrompt, whole: Any
) -> None:
    """Also where a step holds more tokens than are computed together, and an image lies across two of those parts."""
    spans = [prompt.span(slot, 0, 96) for slot in range(NUM_SLOTS - 1)]
    text = Span(3, 0, TEXT[:38], True)
    cut = MAX_ROWS - len(text.token_ids) - 2 * 96
    assert (prompt.ids[cut - 1 : cut + 1] < 0).all() and len(set(prompt.positions(cut - 1, 2)[0])) == 1
    alone = step(native, text)[0]
    together = step(native, text, *spans)
    np.testing.assert_array_equal(together, [alone, *([whole[95]] * len(spans))])


def test_a_prefix_may_end_inside_of_an_image(native: NativeRunner, prompt: ImagePrompt, whole: Any) -> None:
    step(native, prompt.span(0, 0, 96))
    native.copy_prefix(0, 2, IN_IMAGE)
    np.testing.assert_array_equal(step(native, prompt.span(2, IN_IMAGE, 40))[0], whole[39])


def test_drafts_behind_an_image_are_verified_as_they_would_be_computed(
    native: NativeRunner, prompt: ImagePrompt, whole: Any
) -> None:
    start = LENGTH - 5
    step(native, prompt.span(0, 0, start))
    np.testing.assert_array_equal(step(native, prompt.span(0, start, LENGTH, num_drafts=4)), whole[start:])


def test_positions_that_say_what_is_the_case_change_nothing(native: NativeRunner) -> None:
    along = np.tile(np.arange(len(TEXT), dtype=np.int32), (3, 1))
    expected = step(native, Span(0, 0, TEXT, True))
    np.testing.assert_array_equal(step(native, Span(0, 0, TEXT, True, positions=along)), expected)


def test_text_is_what_it_is_without_images(tmp_path: Path) -> None:
    """To the bit, and from the same weights, where the sections follow each other."""
    rows = []
    for name, each in (("seeing", GLM), ("plain", GLM.without_images())):
        runner = native_runner(tmp_path / name, each)
        rows.append(step(runner, Span(0, 0, TEXT, True)))
        runner.close()
    np.testing.assert_array_equal(*rows)
    seeing, plain = tmp_path / "seeing", tmp_path / "plain"
    assert (seeing / "weights.bin").read_bytes() == (plain / "weights.bin").read_bytes()
    with_images, without = (np.fromfile(path / "program.bin", np.int64) for path in (seeing, plain))
    np.testing.assert_array_equal(with_images[HEADER_FIELDS:], [*GLM.rope.sections, *without[HEADER_FIELDS:]])


def test_each_of_the_three_positions_counts(native: NativeRunner, onnx: Any) -> None:
    """The last token's are moved, one after the other; moved together they are another token's of a text."""
    for runner in (native, onnx):
        logits = []
        for moved in ([0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]):
            positions = np.arange(9, dtype=np.int32) + np.zeros((3, 1), np.int32)
            positions[:, -1] += np.array(moved, np.int32)
            logits.append(step(runner, Span(0, 0, TEXT[:9], True, positions=positions))[0])
        assert len({row.tobytes() for row in logits}) == 4


def test_features_that_are_no_numbers_stay_with_their_request(
    native: NativeRunner, prompt: ImagePrompt, whole: Any
) -> None:
    broken = dataclasses.replace(prompt, features=prompt.features.copy())
    broken.features[3, 5] = np.nan
    together = step(native, broken.span(1, 0, 40), prompt.span(2, 0, 40))
    assert np.isnan(together[0]).all()
    np.testing.assert_array_equal(together[1], whole[39])
    np.testing.assert_array_equal(step(native, prompt.span(1, 0, 40))[0], whole[39])


IMAGE_IDS, POSITIONS = np.array([1, -1, -2], np.int32), np.zeros((3, 3), np.int32)


def image_span(num_rows: int, width: int, ids: Any = IMAGE_IDS) -> Span:
    return Span(0, 0, ids, True, features=np.zeros((num_rows, width), np.float32))


REFUSED: dict[str, Callable[[int], Span]] = {  # of the size of the runner's features
    "slot 0 has 2 tokens of images and 0 rows of features": lambda size: Span(0, 0, IMAGE_IDS, True),
    "slot 0 has 2 tokens of images and 3 rows of features": lambda size: image_span(3, size),
    "slot 0 has 0 tokens of images and 1 rows of features": lambda size: image_span(1, size, TEXT[:3]),
    r"features of the shape \(2, 47\); rows have": lambda size: image_span(2, 47),
    r"positions of the shape \(3, 2\); \(3, 3\) is right": lambda size: placed(POSITIONS[:, :2]),
    "positions of -1 ... -1, which are not in 0 ... 199": lambda size: placed(POSITIONS - 1),
    "positions of 200 ... 200, which are not in 0 ... 199": lambda size: placed(POSITIONS + 200),
}


def placed(positions: Any) -> Span:
    return Span(0, 0, TEXT[:3], True, positions=positions)


@pytest.mark.parametrize("message", REFUSED)
def test_a_span_that_does_not_fit_is_refused(native: NativeRunner, onnx: Any, message: str) -> None:
    for runner in (native, onnx):
        with pytest.raises(ValueError, match=message):
            step(runner, REFUSED[message](runner.limits.feature_size))


@pytest.mark.parametrize("make", [native_runner, fp32_runner])
def test_a_decoder_without_images_says_so(make: Callable[..., Any], tmp_path: Path) -> None:
    runner = make(tmp_path, GLM.without_images())
    assert not runner.limits.has_images
    with pytest.raises(ValueError, match="ids below 0 are tokens of images, which the artifact does not take"):
        step(runner, PROMPT.span(0, 0, 20))
    with pytest.raises(ValueError, match="slot 0 has positions or features of images, which the artifact"):
        step(runner, Span(0, 0, TEXT[:3], True, positions=POSITIONS))
    runner.close()


def test_runners_say_that_they_take_images(spec: ModelSpec, native: NativeRunner, onnx: Any) -> None:
    assert native.limits.has_images and onnx.limits.has_images
    assert native.limits.feature_size == onnx.limits.feature_size == spec.feature_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 0}, "has format 4, this engine runs 3"),
        ({"program_format": 3}, "has format 3, this engine runs 4"),
        ({"feature_size": 30}, "its stream has 64 numbers, features 30"),
    ],
)
def test_a_program_that_does_not_fit_its_images_is_refused(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        native_runner(tmp_path, GLM, **changes)


def test_every_part_of_the_features_counts(spec: ModelSpec, native: NativeRunner, onnx: Any) -> None:
    """What is added behind the layers, too, and of images alone."""
    for runner in (native, onnx):
        logits = []
        for part in range(-1, 1 + spec.num_deepstack):
            features = np.ones((2, spec.feature_size), np.float32)
            features[:, part * spec.hidden_size : (part + 1) * spec.hidden_size] += np.float32(part >= 0)
            logits.append(step(runner, Span(0, 0, np.array([1, -1, -2, 5], np.int32), True, features=features)))
        assert len({row.tobytes() for row in logits}) == len(logits)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("detail", 2, "adds part 2 of features, which is none or was added before"),
        ("detail", 0, "adds part 0 of features"),
        ("selected", 1, "adds features to other rows than the stream's"),
        ("target", 2, "adds features to other rows than the stream's"),
        ("code", 7, "its stream has 64 numbers, features 144 in 2 parts"),
    ],
)
def test_a_program_that_adds_features_elsewhere_is_refused(
    field: str, value: int, message: str, tmp_path: Path
) -> None:
    spec = SPECS["as qwen3_vl"]
    write_program(spec, random_weights(spec), tmp_path)
    program = np.fromfile(tmp_path / "program.bin", np.int64)
    operations = program[HEADER_FIELDS + 3 :].reshape(-1, OPERATION_FIELDS)
    first = np.flatnonzero(operations[:, 0] == Code.ADD_FEATURES)[0]
    operations[first, Operation._fields.index(field)] = value
    program.tofile(tmp_path / "program.bin")
    with pytest.raises(ArtifactError, match=message):
        open_native(tmp_path, spec, ALL_CLASSES[0])


@pytest.mark.parametrize("sections", [(-1, 5, 4), (2, 3, 4), (8, 0, 8)])
def test_sections_that_lead_out_of_a_row_are_refused(sections: tuple[int, ...], tmp_path: Path) -> None:
    write_program(GLM, random_weights(GLM), tmp_path)
    program = np.fromfile(tmp_path / "program.bin", np.int64)
    program[HEADER_FIELDS : HEADER_FIELDS + 3] = sections
    program.tofile(tmp_path / "program.bin")
    with pytest.raises(ArtifactError, match="do not cover 8 pairs"):
        open_native(tmp_path, GLM, ALL_CLASSES[0])


def test_a_graph_that_takes_other_features_is_refused(tmp_path: Path) -> None:
    fp32_runner(tmp_path, GLM).close()
    manifest = Manifest.load(tmp_path)
    changed = dataclasses.replace(manifest, runtime_details={**manifest.runtime_details, "feature_size": 64})
    with pytest.raises(ArtifactError, match="the artifact's graph has image_features as"):
        load_runner(tmp_path, changed, num_threads=1)


def test_onnx_runtime_takes_images_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the caches in what was allocated there; the kernels are the CPU's."""
    weights, gpu = random_weights(GLM), FakeGpu()
    limits = {"num_slots": NUM_SLOTS, "max_length": MAX_LENGTH, "prefill_chunk": CHUNK}
    onnx_runner(tmp_path, GLM, weights, precision="fp16", **limits).close()
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, providers: Any) -> FakeCudaSession:
        assert providers[0][0] == CUDA
        return FakeCudaSession(gpu, real(path, options, providers=["CPUExecutionProvider"]))

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    manifest = Manifest.load(tmp_path)
    runner = OnnxRunner(tmp_path, manifest, num_threads=1, memory=open_memory("cuda", manifest, open_cuda=lambda: gpu))
    expected = ragged_steps(NumpyRunner(GLM, weights, **limits), GLM)
    assert relative(ragged_steps(runner, GLM), expected) < 2e-3
    runner.close()
