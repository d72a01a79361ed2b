"""The tower as ONNX Runtime computes it, against transformers in float32, stage by stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from autoglm_engine.errors import ArtifactError, EngineError
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.vision.processor import Patches, preprocess
from autoglm_engine.vision.tower import OnnxTower, Tower, geometry_inputs
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.checkpoint.vision import VisionCheckpoint
from autoglm_export.model.spec import RopeSpec
from autoglm_export.model.vision import build_tower
from autoglm_export.onnx.graph import OnnxGraph
from autoglm_export.onnx.linear import FloatLinears, Rows
from autoglm_export.onnx.vision import OnnxVisionOps
from autoglm_export.quantize.rotation import Rotation
from autoglm_export.vision_artifact import lower_vision

from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import image_file, reference_pixels, write_tiny_glm4v

pytestmark = pytest.mark.parity
Array = npt.NDArray[np.float32]
ROPE = RopeSpec(theta=10_000.0, dims=16, interleaved=True, sections=(2, 3, 3))
SIZES = [(56, 84), (28, 28), (130, 61), (28, 448)]


@pytest.fixture(scope="module", params=SEEING)
def family(request: pytest.FixtureRequest) -> SeeingModel:
    return SEEING[request.param]


@pytest.fixture(scope="module")
def settings(family: SeeingModel) -> VisionSettings:
    return family.settings


@pytest.fixture(scope="module")
def model(family: SeeingModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VisionCheckpoint, Path]:
    """transformers' model, the same as the exporter reads it, and a folder with the exported tower."""
    folder = tmp_path_factory.mktemp("tower")
    model = family.write(folder / "checkpoint")
    checkpoint = open_checkpoint(folder / "checkpoint")
    assert checkpoint.vision is not None
    assert lower_vision(checkpoint.vision, checkpoint.spec.rope, folder) == family.settings
    return model, checkpoint.vision, folder


def distance(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


class RecordingOps(OnnxVisionOps):
    """Remembers the residual stream: after the embeddings, then after each half of each block."""

    def __init__(self, graph: OnnxGraph, *arguments: Any) -> None:
        super().__init__(graph, *arguments)
        self.residuals: list[str] = []

    def add_rms_norm(self, x: Rows, delta: Rows, weight: str) -> tuple[Rows, Rows]:
        total, normed = super().add_rms_norm(x, delta, weight)
        self.residuals.append(total.value)
        return total, normed

    def add_layer_norm(self, x: Rows, delta: Rows, name: str) -> tuple[Rows, Rows]:
        total, normed = super().add_layer_norm(x, delta, name)
        self.residuals.append(total.value)
        return total, normed


def stages(vision: VisionCheckpoint, folder: Path, patches: Patches, settings: VisionSettings) -> dict[str, Array]:
    """By name: `embeddings`, `block 0`, ..., `features`."""
    names = ["embeddings"]
    for block in range(vision.spec.num_layers):
        names += [f"attention {block}", f"block {block}"]
    with OnnxGraph(folder, "stages.onnx", "stages") as graph:
        ops = RecordingOps(graph, vision.spec, vision.weights, FloatLinears(graph, vision.weights))
        build_tower(vision.spec, ops)
        for name, value in zip(names, ops.residuals, strict=True):
            graph.named("Identity", [value], [name])
            graph.output(name, np.float32, ["patches", vision.spec.hidden_size])
        graph.save()
    session = onnxruntime.InferenceSession(str(folder / "stages.onnx"), providers=["CPUExecutionProvider"])
    inputs = {"patches": patches.values, **geometry_inputs(patches.grid, settings)}
    return dict(zip([*names, "features"], session.run([*names, "features"], inputs), strict=True))


def reference_stages(family: SeeingModel, model: Any, image: bytes) -> dict[str, Array]:
    tower, found = model.model.visual, dict[str, Array]()

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output.detach().numpy())

    def keep_embeddings(module: Any, inputs: Any) -> None:
        found["embeddings"] = inputs[0].detach().numpy()

    hooks = [tower.blocks[0].register_forward_pre_hook(keep_embeddings)]
    hooks += [block.register_forward_hook(keep(f"block {i}")) for i, block in enumerate(tower.blocks)]
    found["features"] = features_of(tower, *family.pixels([image]))
    for hook in hooks:
        hook.remove()
    return found


def features_of(tower: Any, pixels: Any, grid: Any) -> Array:
    with torch.inference_mode():
        output = tower(pixels, grid)
    parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return np.concatenate([part.numpy() for part in parts], axis=1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_stage_is_that_of_transformers(
    family: SeeingModel, model: tuple[Any, VisionCheckpoint, Path], tmp_path: Path, height: int, width: int
) -> None:
    image = image_file(height, width)
    found = stages(model[1], tmp_path, preprocess(image, family.settings), family.settings)
    for name, expected in reference_stages(family, model[0], image).items():
        assert distance(found[name], expected) < 1e-5, name


@pytest.fixture(scope="module")
def tower(model: tuple[Any, VisionCheckpoint, Path], settings: VisionSettings) -> Tower:
    return OnnxTower(model[2] / "vision.onnx", settings, num_threads=1)


def test_one_tower_encodes_images_of_any_size(
    family: SeeingModel, model: tuple[Any, VisionCheckpoint, Path], tower: Tower
) -> None:
    for seed, (height, width) in enumerate([*SIZES, *reversed(SIZES), (300, 200)]):
        image = image_file(height, width, seed=seed)
        features = tower.encode(preprocess(image, family.settings))
        expected = reference_stages(family, model[0], image)["features"]
        assert features.dtype == np.float32 and features.shape == expected.shape
        assert distance(features, expected) < 1e-5


def test_features_of_a_rotated_stream_are_turned(family: SeeingModel, tower: Tower, tmp_path: Path) -> None:
    """All parts of them, with the layers that write them."""
    family.write(tmp_path / "checkpoint")
    checkpoint, rotation = open_checkpoint(tmp_path / "checkpoint"), Rotation.of_size(64)
    assert checkpoint.vision is not None
    lower_vision(checkpoint.vision, checkpoint.spec.rope, tmp_path, rotation=rotation)
    patches = preprocess(image_file(84, 112), family.settings)
    found = OnnxTower(tmp_path / "vision.onnx", family.settings, num_threads=1).encode(patches)
    assert distance(found, rotation.features(tower.encode(patches))) < 1e-5


def test_places_and_pixels_both_count(tower: Tower, settings: VisionSettings) -> None:
    """Random weights could hide a part that is lost: every token of an image changes with one patch, and with the
    grid."""
    patches = preprocess(image_file(84, 112), settings)
    features = tower.encode(patches)
    changed = patches.values.copy()
    changed[0] += 1
    assert (np.abs(tower.encode(Patches(changed, patches.grid)) - features).max(axis=1) > 1e-4).all()
    turned = tower.encode(Patches(patches.values, patches.grid[::-1]))
    assert (np.abs(turned - features).max(axis=1) > 1e-4).all()


def test_what_is_no_number_is_an_error(tower: Tower, settings: VisionSettings) -> None:
    patches = preprocess(image_file(56, 84), settings)
    with pytest.raises(EngineError, match="no finite number"):
        tower.encode(Patches(np.full_like(patches.values, np.nan), patches.grid))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 7}, "patches of width [0-9]*, its manifest 147"),
        ({"head_size": 32}, "rope_cos of width 8, its manifest 16"),
        ({"position_table_size": 5}, "column_weights of width 4, its manifest 5"),
        ({"hidden_size": 65}, "features of width [0-9]*, its manifest 65"),
    ],
)
def test_a_tower_is_what_its_manifest_says(
    model: tuple[Any, VisionCheckpoint, Path], settings: VisionSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        OnnxTower(model[2] / "vision.onnx", dataclasses.replace(settings, **changes), num_threads=1)


def test_what_fails_inside_of_onnx_runtime_is_an_error_of_the_engine(tower: Tower, settings: VisionSettings) -> None:
    patches = preprocess(image_file(56, 84), settings)
    with pytest.raises(EngineError, match="the vision tower failed"):
        tower.encode(Patches(patches.values[:-4], patches.grid))


def test_a_closed_tower_says_so(model: tuple[Any, VisionCheckpoint, Path], settings: VisionSettings) -> None:
    tower = OnnxTower(model[2] / "vision.onnx", settings, num_threads=1)
    tower.close()
    with pytest.raises(ValueError, match="closed"):
        tower.encode(preprocess(image_file(56, 84), settings))


def test_other_shapes_of_towers_are_right_too(tmp_path: Path) -> None:
    """Biases, one frame a patch, blocks of 3 x 3 patches, a table that is not the image's."""
    changes = {
        "attention_bias": True,
        "temporal_patch_size": 1,
        "spatial_merge_size": 3,
        "patch_size": 4,
        "image_size": 28,
    }
    processor = {
        "patch_size": 4,
        "temporal_patch_size": 1,
        "merge_size": 3,
        "size": {"shortest_edge": 144, "longest_edge": 9216},
    }
    model = write_tiny_glm4v(tmp_path, vision=changes, processor=processor)
    vision = open_checkpoint(tmp_path).vision
    assert vision is not None
    settings = lower_vision(vision, ROPE, tmp_path)
    image = image_file(50, 90)
    pixels, grid = reference_pixels([image], processor)
    with torch.inference_mode():
        expected = model.model.visual(pixels, grid).pooler_output.numpy()
    found = OnnxTower(tmp_path / settings.model, settings, num_threads=1).encode(preprocess(image, settings))
    assert distance(found, expected) < 1e-5
