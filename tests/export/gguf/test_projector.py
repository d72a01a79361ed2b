"""A GLM-4.1V model in two GGUF files, as llama.cpp's converter writes them, is the folder that it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.errors import CheckpointError, ExportError, UnsupportedModel
from autoglm_export.vision_artifact import lower_vision

from tests.support.export.gguf_conversion import write_model, write_projector
from tests.support.export.plain_checkpoints import write_gguf_file
from tests.support.export.tiny_glm4v import PREPROCESSOR, gguf_tokenizer, tiny_glm4v, write_tiny_glm4v

MEAN, STD = PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"]
LIMITS = {
    "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}
}  # of the family, where no file has them


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_glm4v()


@pytest.fixture(scope="module")
def files(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm4v-gguf")
    write_model(folder / "tiny-F32.gguf", tiny, gguf_tokenizer())
    write_projector(folder / "mmproj-tiny-F32.gguf", tiny, MEAN, STD)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm4v-original") / "tiny"
    write_tiny_glm4v(folder, processor=LIMITS)
    return folder


def seeing(checkpoint: Checkpoint) -> Any:
    assert checkpoint.vision is not None
    return checkpoint.vision


@pytest.mark.parametrize("named", [".", "tiny-F32.gguf"])
def test_both_files_are_the_folder_that_they_were_made_of(named: str, files: Path, original: Path) -> None:
    found, expected = open_checkpoint(files / named), open_checkpoint(original)
    assert found.spec.takes_images
    assert found.spec.rope == expected.spec.rope
    ours, theirs = seeing(found), seeing(expected)
    assert (ours.processor, ours.tokens) == (theirs.processor, theirs.tokens)
    for mine, reference in ((found.weights, expected.weights), (ours.weights, theirs.weights)):
        assert list(mine) == list(reference)
        for name, weight in reference.items():
            np.testing.assert_array_equal(mine[name], weight, err_msg=name)
    sizes = [vision.spec.__class__.__dataclass_fields__ for vision in (ours, theirs)]
    for name in sizes[0]:
        mine, reference = getattr(ours.spec, name), getattr(theirs.spec, name)
        assert mine == reference or np.float32(mine) == np.float32(reference), name


def test_both_give_the_same_tower(files: Path, original: Path, tmp_path: Path) -> None:
    """Byte by byte: the artifact's graph, which is compared with transformers elsewhere."""
    written: dict[str, dict[str, bytes]] = {}
    for name, path in (("ours", files), ("theirs", original)):
        checkpoint = open_checkpoint(path)
        (tmp_path / name).mkdir()
        settings = lower_vision(seeing(checkpoint), checkpoint.spec.rope, tmp_path / name)
        assert settings.max_pixels == LIMITS["size"]["longest_edge"]
        written[name] = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert "vision.onnx" in written["ours"]
    assert written["ours"] == written["theirs"]


def test_without_its_vision_part_the_model_reads_text(files: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(files / "tiny-F32.gguf", tmp_path))
    found = open_checkpoint(alone)
    assert found.vision is None
    assert found.spec == open_checkpoint(files).spec.without_images()


def test_a_vision_part_beside_a_model_of_texts(files: Path, tmp_path: Path) -> None:
    """A folder asks for both; a file in a folder of downloads is taken alone."""
    write_gguf_file(tmp_path / "texts.gguf")
    shutil.copy(files / "mmproj-tiny-F32.gguf", tmp_path)
    assert open_checkpoint(tmp_path / "texts.gguf").vision is None
    with pytest.raises(
        UnsupportedModel, match=r"mmproj-tiny-F32\.gguf is for a model that takes images, and texts\.gguf"
    ):
        open_checkpoint(tmp_path)


def test_two_vision_parts_and_one_alone_are_told(files: Path, tmp_path: Path) -> None:
    for name in ("tiny-F32.gguf", "mmproj-tiny-F32.gguf"):
        shutil.copy(files / name, tmp_path)
    with pytest.raises(UnsupportedModel, match="the file is the vision part of a model; name the model's file"):
        open_checkpoint(tmp_path / "mmproj-tiny-F32.gguf")
    shutil.copy(files / "mmproj-tiny-F32.gguf", tmp_path / "MMPROJ-other.GGUF")
    for named in (tmp_path, tmp_path / "tiny-F32.gguf"):
        with pytest.raises(CheckpointError, match="holds several vision parts; leave one of them: MMPROJ-other"):
            open_checkpoint(named)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another projector": ({"clip.projector_type": "qwen3vl_merger"}, "clip.projector_type of mmproj.gguf is 'qwen3vl"),
    "none": ({"clip.projector_type": None}, "mmproj.gguf lacks clip.projector_type"),
    "audio": ({"clip.has_audio_encoder": True}, "clip.has_audio_encoder of mmproj.gguf is True; only False"),
    "activation": ({"clip.use_silu": None, "clip.use_gelu": True}, "clip.use_silu of mmproj.gguf is None; only True"),
    "a new key": ({"clip.vision.window_size": 112}, "not understood: clip.vision.window_size"),
    "no patch size": ({"clip.vision.patch_size": None}, "mmproj.gguf lacks clip.vision.patch_size"),
    "no mean": ({"clip.vision.image_mean": None}, "mmproj.gguf lacks clip.vision.image_mean"),
    "a mean of two": ({"clip.vision.image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]; it must be three numbers"),
    "another decoder": ({"clip.vision.projection_dim": 128}, "out_hidden_size is 128; the text model is 64 wide"),
    "more blocks": ({"clip.vision.block_count": 2**31 - 1}, "has 2147483647 blocks"),
    "one block": ({"clip.vision.block_count": 1}, "not explain: v.blk.1"),
    "merging": ({"clip.vision.spatial_merge_size": 3}, "the tensor mm.patch_merger.weight has shape [64, 32, 2, 2]"),
    "a text": ({"clip.vision.image_size": "large"}, "image_size"),
    "another kind": ({"general.architecture": "bert"}, "mmproj.gguf is no vision part: its architecture is 'bert'"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_not_understood_of_a_vision_part_is_named(case: str, files: Path, tiny: Any, tmp_path: Path) -> None:
    changes, message = CHANGES[case]
    shutil.copy(files / "tiny-F32.gguf", tmp_path / "m.gguf")
    write_projector(tmp_path / "mmproj.gguf", tiny, MEAN, STD, **changes)
    with pytest.raises(ExportError) as caught:
        open_checkpoint(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ("v.patch_embd.weight", "lacks v.patch_embd.weight"),
        ("v.patch_embd.weight.1", "lacks v.patch_embd.weight.1"),
        ("mm.gate.weight", "lacks mm.gate.weight"),
        ("v.blk.1.ln2.weight", "lacks v.blk.1.ln2.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(dropped: str, message: str, files: Path, tiny: Any, tmp_path: Path) -> None:
    shutil.copy(files / "tiny-F32.gguf", tmp_path / "m.gguf")
    write_projector(tmp_path / "mmproj.gguf", tiny, MEAN, STD, without=dropped)
    with pytest.raises(ExportError) as caught:
        open_checkpoint(tmp_path)
    assert message in str(caught.value)
