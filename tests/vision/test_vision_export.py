"""`autoglm export` of a checkpoint that takes images: what is in the artifact, and whether it sees what transformers
sees."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from autoglm_cli import app
from autoglm_engine.core import Positions
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.triton.board.finder import ImageBoards
from autoglm_engine.triton.board.server_identity import ServerIdentity
from autoglm_engine.triton.images.vision_model import VisionService
from autoglm_engine.vision.processor import preprocess
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError, InvalidOption, ParityError
from autoglm_export.export import check_artifact, export
from autoglm_export.parity import image_answers
from autoglm_export.parity.gate import compare
from autoglm_export.parity.images import drawn
from typer.testing import CliRunner

from tests.support.export.tiny_glm4v import PREPROCESSOR, VISION_CONFIG, image_file, write_tiny_glm4v
from tests.support.export.tiny_models import edit_json
from tests.support.vision.settings import vision_settings

pytestmark = pytest.mark.parity
LIMITS = {"max_slots": 2, "max_length": 128, "prefill_chunk": 32}


@pytest.fixture(scope="module")
def exported(tiny_glm4v: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "artifact"
    export(tiny_glm4v, folder, runtime="onnx", precision="fp32", check=True, **LIMITS)
    return folder


def test_the_manifest_says_how_images_are_read(exported: Path) -> None:
    manifest = Manifest.load(exported)
    assert manifest.vision == vision_settings()
    assert {"vision.onnx", "vision.onnx.data"} <= manifest.files.keys()
    manifest.verify_files(exported, digests=True)


@pytest.mark.parametrize("name", ["vision.onnx", "vision.onnx.data"])
def test_a_changed_byte_of_the_tower_is_found_before_it_is_loaded(name: str, exported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(exported, artifact)
    content = bytearray((artifact / name).read_bytes())
    content[len(content) // 2] ^= 1
    (artifact / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)} is not the file that was exported"):
        VisionService(artifact, 1, ImageBoards(ServerIdentity.of(os.getpid()), tmp_path)).start()


def test_the_parity_gate_looks_at_images(exported: Path) -> None:
    parity = Manifest.load(exported).parity
    assert parity is not None and parity["passed"]
    assert set(parity["images"]) == {"wide", "tall", "small"}
    assert all(image["relative_l2"] < 1e-5 for image in parity["images"].values())
    answers = [image["answer"] for image in parity["images"].values()]
    assert all(answer["relative_l2"] < 1e-5 and answer["top1_agreement"] == 1 for answer in answers)


def test_another_tower_fails_the_gate(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tiny_glm4v(other, vision_seed=5)
    artifact = tmp_path / "artifact"
    shutil.copytree(exported, artifact)
    with pytest.raises(ParityError, match="the features of the wide image are"):
        check_artifact(artifact, other)
    parity = Manifest.load(artifact).parity
    assert parity is not None and not parity["passed"]
    assert all("image" in failure for failure in parity["failures"]), "the texts are the same"


@pytest.mark.parametrize(("runtime", "precision"), [("onnx", "fp32"), ("native", "int8")])
def test_tokens_in_the_wrong_places_fail_the_gate(
    tiny_glm4v: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str
) -> None:
    artifact = tmp_path / "artifact"
    export(tiny_glm4v, artifact, runtime=runtime, precision=precision, **LIMITS)
    right = compare(artifact, tiny_glm4v)
    assert not any(image.failures(name) for name, image in right.images.items())
    monkeypatch.setattr(image_answers, "rope_positions", along_the_text)
    wrong = compare(artifact, tiny_glm4v).images["wide"]
    (failure,) = wrong.failures("wide")
    assert re.fullmatch(r"the logits behind it are .* off, above .*, for the wide image", failure)


def along_the_text(images: object, start: int, count: int) -> Positions:
    return np.tile(np.arange(start, start + count, dtype=np.int32), (3, 1))


def test_the_artifact_opens_as_a_tower(exported: Path) -> None:
    manifest = Manifest.load(exported)
    tower = open_tower(exported, manifest)
    features = tower.encode(preprocess(image_file(56, 84), tower.settings))
    assert features.shape == (6, 64) and np.isfinite(features).all()
    (exported / "vision.onnx").rename(exported / "away.onnx")
    try:
        with pytest.raises(ArtifactError, match=r"vision\.onnx cannot be loaded"):
            open_tower(exported, manifest)
    finally:
        (exported / "away.onnx").rename(exported / "vision.onnx")


def test_a_checkpoint_without_image_processor_reads_text_alone(tiny_glm4v: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_glm4v, tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    manifest = export(tmp_path / "blind", tmp_path / "artifact", runtime="onnx", precision="fp32", **LIMITS)
    assert manifest.vision is None and "vision.onnx" not in manifest.files
    with pytest.raises(ArtifactError, match="its model reads text alone"):
        open_tower(tmp_path / "artifact", manifest)


def test_writing_the_tower_is_a_stage(tiny_glm4v: Path, tmp_path: Path) -> None:
    told: list[float] = []

    def progress(stage: str, fraction: float) -> None:
        told.extend([fraction] if stage == "write vision tower" else [])

    export(tiny_glm4v, tmp_path / "artifact", runtime="onnx", precision="fp32", progress=progress, **LIMITS)
    assert told[0] == 0.0 and told == sorted(told) and told[-1] == 1.0
    assert len(set(told)) > 20


def test_images_can_be_made_smaller(tiny_glm4v: Path, tmp_path: Path) -> None:
    options = {**LIMITS, "runtime": "onnx", "precision": "fp32"}
    manifest = export(tiny_glm4v, tmp_path / "artifact", max_pixels=6272, check=True, **options)
    assert manifest.vision == vision_settings(max_pixels=6272)
    assert manifest.parity is not None
    assert max(image["tokens"] for image in manifest.parity["images"].values()) <= 4
    for wrong in (3135, 100_353):
        with pytest.raises(InvalidOption, match=r"allowed is 3136 \.\.\. 100352"):
            export(tiny_glm4v, tmp_path / "other", max_pixels=wrong, **options)
    shutil.copytree(tiny_glm4v, tmp_path / "blind")
    (tmp_path / "blind" / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidOption, match="blind takes no images"):
        export(tmp_path / "blind", tmp_path / "other", max_pixels=6272, **options)


def test_the_command_says_how_many_tokens_images_take(tiny_glm4v: Path, tmp_path: Path) -> None:
    options = ["--runtime", "onnx", "--precision", "fp32", "--max-length", "96", "--max-pixels", "6272"]
    result = CliRunner().invoke(app, ["export", str(tiny_glm4v), "-o", str(tmp_path / "artifact"), *options])
    assert result.exit_code == 0, result.output
    line = "takes images of up to 4 tokens each (--max-pixels); a request has up to 96 in all (--max-length)"
    assert line in result.output


def test_one_file_for_all_processors_goes_first(tiny_glm4v: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_glm4v, tmp_path / "both")
    size = {"shortest_edge": 3136, "longest_edge": 6272}
    (tmp_path / "both" / "processor_config.json").write_text('{"processor_class": "Glm4vProcessor"}')
    vision = open_checkpoint(tmp_path / "both").vision
    assert vision is not None and vision.processor.max_pixels == 100_352
    edit_json(tmp_path / "both" / "processor_config.json", image_processor={**PREPROCESSOR, "size": size})
    vision = open_checkpoint(tmp_path / "both").vision
    assert vision is not None and vision.processor.max_pixels == 6272


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"vision_config": None}, "vision_config is None"),
        ("config.json", {"vision_config": {"depth": 3}}, "out_hidden_size is 4096"),
        (
            "config.json",
            {"vision_config": {**VISION_CONFIG, "depth": 2**31 - 1}},
            "2147483647 blocks, of 7 tensors each",
        ),
        ("config.json", {"vision_config": {**VISION_CONFIG, "depth": 1}}, "model.visual.blocks.1."),
        (
            "config.json",
            {"vision_config": {**VISION_CONFIG, "hidden_size": 64}},
            "model.visual.patch_embed.proj.weight",
        ),
        ("config.json", {"image_token_id": 5}, "image_token_id is 5"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
    ],
)
def test_what_contradicts_is_refused(
    tiny_glm4v: Path, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    shutil.copytree(tiny_glm4v, tmp_path / "changed")
    edit_json(tmp_path / "changed" / file, **changes)
    with pytest.raises(ExportError) as caught:
        open_checkpoint(tmp_path / "changed")
    assert message in str(caught.value)


def test_a_missing_tensor_of_the_tower_is_named(tiny_glm4v: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_glm4v, tmp_path / "changed")
    path = tmp_path / "changed" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.visual.blocks.1.norm2.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks model\.visual\.blocks\.1\.norm2\.weight"):
        open_checkpoint(tmp_path / "changed")


def test_the_gates_images_are_the_same_every_time() -> None:
    assert drawn(40, 30) == drawn(40, 30)
