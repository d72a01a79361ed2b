"""The vision tower lowered to TensorRT: its network against transformers, and its runner over a GPU that never was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
import torch
from autoglm_engine.errors import ArtifactError, DeviceError, EngineError, GivenUp, InvalidRequest
from autoglm_engine.manifest import FileRecord, Manifest
from autoglm_engine.runners.tensorrt.tower import TensorRTTower, open_tensorrt_tower, tower_inputs
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.vision.processor import Patches, preprocess
from autoglm_engine.vision.stop import Stop
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.vision import VisionCheckpoint
from autoglm_export.errors import InvalidOption
from autoglm_export.export import export
from autoglm_export.model.vision_spec import VisionSpec
from autoglm_export.tensorrt.build import Builder
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.vision import TensorRTVisionOps, define_tower, tower_profile, write_vision_engine

from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_decoders import SPECS
from tests.support.export.tiny_glm4v import image_file
from tests.support.tensorrt.contract_network import contract_manifest
from tests.support.tensorrt.fake_cuda import FakeCuda
from tests.support.tensorrt.fake_tensorrt import PLAN, Arrays, FakeNetwork, FakeRTX, FakeTensor
from tests.support.tensorrt.tensorrt_networks import layers_of
from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.vision.settings import vision_settings

pytestmark = pytest.mark.tensorrt

SIZES = [(56, 84), (84, 56), (140, 112), (28, 300)]
EXACT = 1e-5  # relative L2 of all features, of a network computed precisely
TYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TYPED = {"fp16": 2e-2, "bf16": 3e-2}  # relative L2 as typed, of random weights


@dataclasses.dataclass(frozen=True)
class Tiny:
    family: SeeingModel
    vision: VisionCheckpoint
    expected: list[tuple[Patches, npt.NDArray[np.float32]]]  # images and transformers' features


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return written("glm4v", tmp_path_factory.mktemp("glm4v"))


@pytest.fixture(scope="module", params=SEEING)
def seeing(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny if request.param == "glm4v" else written(request.param, tmp_path_factory.mktemp(request.param))


def written(name: str, folder: Path) -> Tiny:
    """Weights that bfloat16 holds, so that nothing but the lowering is between the two."""
    family = SEEING[name]
    model = family.write(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        kernel = model.model.visual.patch_embed.proj.weight
        kernel[:, :, 1] = kernel[:, :, 0]  # an export adds the two
    model.save_pretrained(folder)
    vision = open_checkpoint(folder).vision
    assert vision is not None
    expected = []
    for seed, (height, width) in enumerate(SIZES):
        image = image_file(height, width, seed=seed)
        with torch.inference_mode():
            seen = model.model.visual(*family.pixels([image]))
        parts = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
        expected.append((preprocess(image, family.settings), torch.cat(parts, dim=1).numpy()))
    return Tiny(family, vision, expected)


def defined(tiny: Tiny, precision: str = "bf16", form: str = "fused") -> Network:
    network = Network(trt, Builder(trt).handle)
    define_tower(network, tiny.vision.spec, tiny.vision.weights, TYPES[precision], form=form)
    return network


def largest_distance(network: Network, tiny: Tiny, *, precise: bool = True) -> float:
    interpreter = Interpreter(network.definition, trt, precise=precise)
    settings = tiny.family.settings
    found = [interpreter.run(tower_inputs(patches, settings))["features"] for patches, _ in tiny.expected]
    return max(distance(actual, expected) for actual, (_, expected) in zip(found, tiny.expected, strict=True))


def distance(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", TYPES)
def test_the_network_is_the_tower(seeing: Tiny, precision: str) -> None:
    """Images of any size through one network: the lowering itself, and what 16 bits cost."""
    network = defined(seeing, precision)
    assert largest_distance(network, seeing) < EXACT
    assert largest_distance(network, seeing, precise=False) < TYPED[precision]


Break = Callable[[pytest.MonkeyPatch], None]


def rows_for_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    make = TensorRTVisionOps._input
    other = {"row_weights": "column_weights", "column_weights": "row_weights"}
    monkeypatch.setattr(TensorRTVisionOps, "_input", lambda ops, name, *rest: make(ops, other.get(name, name), *rest))


def neighbours_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = TensorRTVisionOps._turned

    def broken(ops: TensorRTVisionOps, x: Any) -> Any:
        add = ops._network.definition.add_rotary_embedding(ops._heads(x), ops._cos, ops._sin, True, ops._spec.head_size)
        return add.get_output(0)

    assert turned is not broken
    monkeypatch.setattr(TensorRTVisionOps, "_turned", broken)


def not_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTVisionOps, "_turned", lambda ops, x: ops._heads(x))


def other_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    def tanh(network: Network, x: Any) -> Any:
        return network.definition.add_activation(x, trt.ActivationType.GELU_TANH).get_output(0)

    monkeypatch.setattr(Network, "gelu", tanh)


def not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    constant = Network.constant
    monkeypatch.setattr(
        Network, "constant", lambda n, name, x: constant(n, name, x * 0 + 1 if name == "attention_scale" else x)
    )


def not_centred(monkeypatch: pytest.MonkeyPatch) -> None:
    def rms(ops: TensorRTVisionOps, x: Any, name: str) -> Any:
        normed = ops.rms_norm(x, f"{name}.weight")
        return ops._network.binary("SUM", normed, ops._network.constant("b", ops._weights[f"{name}.bias"][None, None]))

    monkeypatch.setattr(TensorRTVisionOps, "layer_norm", rms)


@pytest.mark.parametrize(
    "breaks", [rows_for_columns, neighbours_turned, not_turned, other_gelu, not_scaled, not_centred]
)
def test_a_broken_lowering_is_caught(seeing: Tiny, breaks: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch)
    try:
        difference = largest_distance(defined(seeing), seeing)
    except ValueError:
        return  # the interpreter found shapes that do not go together
    assert difference > 10 * EXACT


def test_attention_has_no_mask_and_float16_is_widened(tiny: Tiny) -> None:
    for precision, dtype in (("bf16", trt.bfloat16), ("fp16", trt.float32)):
        layers = layers_of(defined(tiny, precision).definition)
        attentions = [layer.attention for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
        assert len(attentions) == tiny.vision.spec.num_layers
        for attention in attentions:
            assert attention.mask is None and not attention.decomposable
            assert attention.causal_kind == trt.CausalMaskKind.NONE
            assert attention.get_input(0).dtype == dtype


def test_products_and_attention_are_all_that_is_not_float32(tiny: Tiny) -> None:
    narrow = {trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CAST, trt.LayerType.CONSTANT}
    narrow |= {trt.LayerType.ATTENTION_INPUT, trt.LayerType.ATTENTION_OUTPUT}
    for layer in layers_of(defined(tiny).definition):
        is_of_table = (layer.name or "").startswith("position_table")
        if layer.type not in narrow or is_of_table:
            types = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
            assert types <= {trt.float32, trt.int32, trt.int64}, f"{layer.name} gives {types}"


def test_the_engine_builds_without_a_gpu(tiny: Tiny, tmp_path: Path) -> None:
    settings = vision_settings(runtime="tensorrt-rtx", model="vision.plan", precision="bf16")
    vision = tiny.vision
    built = write_vision_engine(vision.spec, vision.weights, settings, tmp_path, compute_capabilities=["8.9"])
    assert built.attempt.form == "fused" and not built.note
    assert (tmp_path / "vision.plan").stat().st_size > 10_000
    with pytest.raises(InvalidOption, match=r"compute_capability is '9.0'"):
        write_vision_engine(vision.spec, vision.weights, settings, tmp_path, compute_capabilities=["9.0"])


REAL = VisionSpec(14, 2, 2, 24, 1536, 24, 12, 4096, 4096, 13696, 1e-5, 10_000.0)


def test_one_profile_covers_a_phones_screen_and_the_largest_image() -> None:
    settings = vision_settings(min_pixels=12_544, max_pixels=9_633_792)
    profile = tower_profile(REAL, settings.largest_tokens)
    assert (profile.smallest["patches"], profile.usual["patches"]) == ((4, 588), (13_416, 588))
    assert profile.usual["row_weights"] == profile.usual["column_weights"] == (13_416, 24)
    assert profile.largest["patches"] == (29_036, 588) and profile.largest["rope_cos"] == (29_036, 64)
    assert set(profile.smallest) == set(profile.usual) == set(profile.largest)
    small = tower_profile(REAL, vision_settings().largest_tokens)
    for name, shape in small.usual.items():
        assert all(
            low <= x <= high for low, x, high in zip(small.smallest[name], shape, small.largest[name], strict=True)
        )


# ---- the tower on a GPU


class TowerBench:
    """A tower on the fake GPU of the network that the lowering defines. `open` may be put off to arrange a failure."""

    def __init__(self, tiny: Tiny, folder: Path, **changes: Any) -> None:
        manifest = contract_manifest(
            folder,
            SPECS["glm4"],
            num_slots=2,
            max_length=24,
            prefill_chunk=16,
            num_candidates=6,
            runtime="tensorrt-rtx",
            module="tensorrt_rtx",
            feature_size=64,
        )
        (folder / "vision.plan").write_bytes(PLAN)
        manifest.files["vision.plan"] = FileRecord.of(folder / "vision.plan")
        vision = vision_settings(runtime="tensorrt-rtx", model="vision.plan", precision="bf16", **changes)
        self.manifest, self.folder = dataclasses.replace(manifest, vision=vision), folder
        self.cuda = FakeCuda()
        self.trt = FakeRTX(self.cuda, tower_network(tiny))

    def open(self) -> TensorRTTower:
        environ = {"XDG_CACHE_HOME": str(self.folder)}
        return open_tensorrt_tower(self.folder, self.manifest, self.trt, self.cuda, environ)


def tower_network(tiny: Tiny) -> FakeNetwork:
    network = defined(tiny)
    interpreter, definition = Interpreter(network.definition, trt, precise=True), network.definition
    types = {trt.DataType.FLOAT: np.float32, trt.DataType.INT32: np.int32}
    sides = (
        (True, definition.num_inputs, definition.get_input),
        (False, definition.num_outputs, definition.get_output),
    )
    tensors = {
        tensor.name: FakeTensor(types[tensor.dtype], tuple(tensor.shape), is_input)
        for is_input, count, get in sides
        for tensor in map(get, range(count))
    }
    profile = tower_profile(tiny.vision.spec, vision_settings().largest_tokens)
    ranges = {name: (profile.smallest[name], profile.largest[name]) for name in profile.largest}

    def compute(inputs: Arrays, outputs: Arrays) -> None:
        outputs["features"][...] = interpreter.run({name: values.copy() for name, values in inputs.items()})["features"]

    return FakeNetwork(
        tensors,
        (ranges,),
        lambda given: {"features": (given["patches"][0] // 4, 64)},
        compute,
        activation_bytes=(2000,),
    )


@pytest.fixture
def bench(tiny: Tiny, tmp_path: Path) -> TowerBench:
    return TowerBench(tiny, tmp_path)


def test_a_tower_encodes_images_of_any_size_in_one_block_of_memory(tiny: Tiny, bench: TowerBench) -> None:
    tower = bench.open()
    used, contexts = bench.cuda.used, len(bench.trt.contexts)
    kept = []
    for patches, expected in [*tiny.expected, *reversed(tiny.expected)]:
        kept.append((tower.encode(patches), expected))
    for features, expected in kept:  # what it gave is the caller's
        assert features.dtype == np.float32 and features.shape == expected.shape
        assert distance(features, expected) < EXACT
    assert (bench.cuda.used, len(bench.trt.contexts)) == (used, contexts)
    tower.close()
    tower.close()
    assert not bench.cuda.leaks
    with pytest.raises(ValueError, match="closed"):
        tower.encode(tiny.expected[0][0])


def test_the_smallest_and_the_largest_image_run_at_load(bench: TowerBench) -> None:
    bench.open()
    (context,) = bench.trt.contexts
    assert context.num_enqueued == 2
    assert context.shapes["patches"][0] == 4 * 178, "as many tokens as a strip may have"


def test_what_is_no_number_is_an_error_of_that_image_alone(tiny: Tiny, bench: TowerBench) -> None:
    tower, (patches, expected) = bench.open(), tiny.expected[0]
    network = bench.trt.network
    broken = dataclasses.replace(network, compute=lambda inputs, outputs: outputs["features"].fill(np.nan))
    (context,) = bench.trt.contexts
    context.network = broken
    with pytest.raises(EngineError, match="no finite number"):
        tower.encode(patches)
    context.network = network
    assert distance(tower.encode(patches), expected) < EXACT


def test_an_image_beyond_the_engines_is_an_error_of_that_image_alone(tiny: Tiny, bench: TowerBench) -> None:
    tower, (patches, expected) = bench.open(), tiny.expected[0]
    beyond = Patches(np.zeros((4 * 179, patches.values.shape[1]), np.float32), (2, 358))
    with pytest.raises(InvalidRequest, match="an image has 179 tokens; this vision tower takes at most 178"):
        tower.encode(beyond)
    assert distance(tower.encode(patches), expected) < EXACT


def test_an_image_that_nobody_wants_is_not_computed(tiny: Tiny, bench: TowerBench) -> None:
    tower, (patches, expected), stop = bench.open(), tiny.expected[0], Stop()
    (context,) = bench.trt.contexts
    num_before = context.num_enqueued
    stop.ask()
    with pytest.raises(GivenUp):
        tower.encode(patches, stop)
    assert context.num_enqueued == num_before
    assert distance(tower.encode(patches, Stop()), expected) < EXACT


def test_the_first_failure_of_the_gpu_is_final(tiny: Tiny, bench: TowerBench) -> None:
    tower, patches = bench.open(), tiny.expected[0][0]
    bench.trt.refuses.add("execute_async_v3")
    with pytest.raises(DeviceError, match="could not enqueue"):
        tower.encode(patches)
    bench.trt.refuses.clear()
    with pytest.raises(DeviceError, match="failed before"):
        tower.encode(patches)
    tower.close()
    assert not bench.cuda.leaks


def test_a_gpu_without_room_says_so(bench: TowerBench) -> None:
    bench.cuda.total_memory = 1 << 16
    with pytest.raises(ArtifactError, match="not enough GPU memory for the vision tower and images of 64 tokens"):
        bench.open()
    assert not bench.cuda.leaks


def test_a_plan_for_another_gpu_is_refused(bench: TowerBench) -> None:
    bench.cuda.compute_capability = "12.0"
    with pytest.raises(ArtifactError, match=r"built for GPUs of compute capability 8.0, 8.9, this machine's has 12.0"):
        bench.open()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 7}, "patches of width 588, its manifest 147"),
        ({"head_size": 32}, "rope_cos of width 8, its manifest 16"),
        ({"hidden_size": 65}, "features of width 64, its manifest 65"),
    ],
)
def test_a_tower_is_what_its_manifest_says(tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        TowerBench(tiny, tmp_path, **changes).open()


@pytest.mark.parametrize("family", SEEING)
def test_an_export_for_tensorrt_has_a_tower_for_tensorrt(family: str, tmp_path: Path) -> None:
    """Where there is no GPU it says so in one sentence."""
    SEEING[family].write(tmp_path / "checkpoint")
    settings = SEEING[family].settings
    artifact = tmp_path / "artifact"
    options = {"max_slots": 2, "max_length": 64, "prefill_chunk": 16, "num_candidates": 8}
    export(tmp_path / "checkpoint", artifact, runtime="tensorrt-rtx", compute_capabilities=["8.9"], **options)
    manifest = Manifest.load(artifact)
    of_tower: dict[str, Any] = {"runtime": "tensorrt-rtx", "model": "vision.plan", "precision": "bf16"}
    assert manifest.vision == dataclasses.replace(settings, **of_tower)
    assert manifest.runtime_details["feature_size"] == settings.hidden_size
    assert {"engine.plan", "vision.plan", "reference.npz"} <= manifest.files.keys()
    with pytest.raises(ArtifactError, match=r"no usable NVIDIA GPU|no NVIDIA driver answers"):
        open_tower(artifact, manifest)
    vision = dataclasses.replace(settings, runtime="tensorrt")
    with pytest.raises(ArtifactError, match="of the runtime tensorrt, the artifact of tensorrt-rtx; export it again"):
        open_tower(artifact, dataclasses.replace(manifest, vision=vision))
    vision = dataclasses.replace(settings, runtime="native")
    with pytest.raises(ArtifactError, match="runtime 'native'; this engine has onnx, tensorrt, tensorrt-rtx"):
        open_tower(artifact, dataclasses.replace(manifest, vision=vision))
