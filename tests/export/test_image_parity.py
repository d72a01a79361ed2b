"""An exported decoder with images against transformers: the same features and positions give the same logits, and
the artifact's own tower the same greedy tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import ImageSpan, Logits, StepBatch
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.runtime_details import check_details
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.vision.processor import preprocess
from autoglm_export.export import export
from autoglm_export.vision_artifact import feature_rotation
from autoglm_perf.in_process.fidelity import log_probabilities

from tests.support.export.image_prompts import ImagePrompt
from tests.support.export.seeing_models import SEEING, SeeingModel
from tests.support.export.tiny_glm4v import HIDDEN_SIZE, VOCAB_SIZE, image_file

pytestmark = pytest.mark.parity

LIMITS = {"max_slots": 3, "max_length": 128, "prefill_chunk": 64}
PARTS: dict[int, list[Any]] = {
    0: [60],
    1: [4, (6, 4), 20],
    3: [4, (2, 9), 6, (5, 5), 3, (1, 2), 20],
}


TENSORRT: dict[str, Any] = {
    "engine": "engine.plan",
    "module": "tensorrt",
    "compute_capabilities": [],
    "weight_streaming": False,
    "attention_lengths": [128],
    "prefill_lengths": [64],
}


@dataclass(frozen=True)
class Exported:
    family: SeeingModel
    checkpoint: Path
    folder: Path
    runner: Runner

    def rotated(self, prompt: ImagePrompt) -> ImagePrompt:
        """As its decoder reads features."""
        manifest = Manifest.load(self.folder)
        rotation = feature_rotation(manifest.spec, manifest.runtime, manifest.precision)
        features = prompt.features if rotation is None else rotation.features(prompt.features)
        return dataclasses.replace(prompt, features=features)


@pytest.fixture(scope="module", params=SEEING)
def family(request: pytest.FixtureRequest) -> SeeingModel:
    return SEEING[request.param]


@pytest.fixture(scope="module")
def model(family: SeeingModel) -> Any:
    return family.make()


@pytest.fixture(scope="module")
def onnx(family: SeeingModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    yield from exported(family, tmp_path_factory.mktemp("onnx"), "onnx", "fp32")


@pytest.fixture(scope="module")
def native(family: SeeingModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    yield from exported(family, tmp_path_factory.mktemp("native"), "native", "int8")


def exported(family: SeeingModel, made: Path, runtime: str, precision: str) -> Iterator[Exported]:
    checkpoint, folder = made / "checkpoint", made / "artifact"
    family.write(checkpoint)
    manifest = export(checkpoint, folder, runtime=runtime, precision=precision, **LIMITS)
    runner = load_runner(folder, manifest, num_threads=1)
    yield Exported(family, checkpoint, folder, runner)
    runner.close()


def prompt_of(family: SeeingModel, num_images: int) -> ImagePrompt:
    return ImagePrompt.random(PARTS[num_images], VOCAB_SIZE, family.settings.hidden_size, seed=num_images)


def expected_logits(model: Any, prompt: ImagePrompt) -> Logits:
    """[num_tokens, vocab_size], of transformers' decoder with the prompt's features."""
    import torch

    inner, merge = model.model, model.config.vision_config.spatial_merge_size
    ids = torch.from_numpy(np.maximum(prompt.ids, 0).astype(np.int64))[None]
    are_of_images = torch.from_numpy(prompt.ids < 0)[None]
    grids = [[1, *(merge * side for side in image.grid)] for image in prompt.images]
    with torch.inference_mode():
        positions, _ = inner.get_rope_index(ids, are_of_images.int(), torch.tensor(grids) if grids else None)
        rows = inner.language_model.embed_tokens(ids)
        rows[are_of_images], *further = torch.from_numpy(prompt.features).split(HIDDEN_SIZE, dim=1)
        deepstack = {"visual_pos_masks": are_of_images, "deepstack_visual_embeds": further} if further else {}
        hidden = inner.language_model(inputs_embeds=rows, position_ids=positions, **deepstack).last_hidden_state
        return np.asarray(model.lm_head(hidden)[0].numpy())


def in_steps(runner: Runner, prompt: ImagePrompt, sizes: list[int]) -> Logits:
    return np.concatenate([run_step(runner, StepBatch((span,))).copy() for span in prompt.chunks(0, sizes)])


@pytest.mark.parametrize("num_images", PARTS)
def test_onnx_in_fp32_gives_the_references_logits(onnx: Exported, model: Any, num_images: int) -> None:
    prompt = prompt_of(onnx.family, num_images)
    expected = expected_logits(model, prompt)
    for sizes in ([1], [64], [7], [9, 30]):
        ends = [span.start + len(span.token_ids) - 1 for span in prompt.chunks(0, sizes)]
        np.testing.assert_allclose(in_steps(onnx.runner, prompt, sizes), expected[ends], rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_images", PARTS)
def test_native_int8_stays_near(native: Exported, model: Any, num_images: int) -> None:
    """As near as on texts. Random weights punish quantisation more than trained ones."""
    prompt = prompt_of(native.family, num_images)
    actual, expected = in_steps(native.runner, native.rotated(prompt), [1]), expected_logits(model, prompt)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.1
    assert divergence(actual, expected).mean() < 0.02
    likeliest = expected.argmax(axis=1)
    ranks = (actual > np.take_along_axis(actual, likeliest[:, None], axis=1)).sum(axis=1)
    assert (ranks < 5).all() and (ranks == 0).mean() > 0.8


def divergence(actual: Logits, expected: Logits) -> Any:
    """KL from `expected`, nats a token."""
    ours, theirs = log_probabilities(actual), log_probabilities(expected)
    return (np.exp(theirs) * (theirs - ours)).sum(axis=1)


FILES = [image_file(60, 90, seed=1), image_file(150, 70, seed=2)]


def test_image_files_give_the_references_greedy_tokens(onnx: Exported, model: Any) -> None:
    """Through the artifact's preprocessing, tower and decoder: whole prompt, then token by token."""
    prompt, ids = seen(onnx)
    expected = onnx.family.logits(model, ids, FILES, 12)
    logits = [in_steps(onnx.runner, prompt, [40])[-1]]
    for _ in expected[1:]:
        prompt = prompt.continued(int(logits[-1].argmax()))
        last = prompt.span(0, len(prompt.ids) - 1, len(prompt.ids))
        logits.append(run_step(onnx.runner, StepBatch((last,)))[0].copy())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert [int(row.argmax()) for row in logits] == [int(row.argmax()) for row in expected]


def seen(onnx: Exported) -> tuple[ImagePrompt, list[int]]:
    """Two images with text around them; and the prompt as transformers takes it."""
    artifact, family = onnx.folder, onnx.family
    tower, ids, images, features = open_tower(artifact, Manifest.load(artifact), num_threads=1), [5, 9], [], []
    for file in FILES:
        patches = preprocess(file, tower.settings)
        rows, columns = (side // tower.settings.merge_size for side in patches.grid)
        images.append(ImageSpan(len(ids) + 1, (rows, columns), file[:32]))
        features.append(tower.encode(patches))
        ids += [family.begin, *[family.image] * (rows * columns), family.end, 65, 66]
    tower.close()
    ids.append(family.ids["<|endoftext|>"])
    return ImagePrompt.of(ids, images, np.concatenate(features)), ids


def test_a_tensorrt_decoder_of_a_text_alone_has_no_tower(onnx: Exported) -> None:
    manifest = dataclasses.replace(Manifest.load(onnx.folder), runtime="tensorrt", runtime_details=TENSORRT)
    with pytest.raises(
        ArtifactError, match=r"features of (64|192) numbers, and a decoder that takes none; export it again"
    ):
        check_details(manifest, onnx.folder)


def test_a_decoder_for_other_features_than_its_towers_is_refused(onnx: Exported) -> None:
    manifest = Manifest.load(onnx.folder)
    manifest.runtime_details["feature_size"] = 32
    size = onnx.family.settings.hidden_size
    with pytest.raises(ArtifactError, match=f"features of {size} numbers, and a decoder that takes 32; export it"):
        check_details(manifest, onnx.folder)
    del manifest.runtime_details["feature_size"]
    with pytest.raises(ArtifactError, match=f"features of {size} numbers, and a decoder that takes none"):
        check_details(manifest, onnx.folder)
