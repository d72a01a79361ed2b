"""A glm4v decoder with images, lowered, against transformers: the same features and the same positions give the same
logits. The tower, which makes the features, is tested for itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from autoglm_engine.core import Logits, StepBatch
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner
from autoglm_export.checkpoint.base import open_checkpoint
from autoglm_export.checkpoint.hf_config import spec_from_config
from autoglm_export.checkpoint.weights import CheckpointWeights
from autoglm_export.model.spec import ModelSpec
from autoglm_perf.in_process.fidelity import log_probabilities

from tests.support.export.image_prompts import ImagePrompt
from tests.support.export.native_artifacts import write_native_artifact
from tests.support.export.tiny_decoders import onnx_runner
from tests.support.export.tiny_models import VOCAB_SIZE, write_checkpoint

pytestmark = pytest.mark.parity

MAX_LENGTH = 128
PROMPTS = {
    0: ImagePrompt.random([60], VOCAB_SIZE, 64),
    1: ImagePrompt.random([4, (6, 4), 20], VOCAB_SIZE, 64, seed=1),
    3: ImagePrompt.random([4, (2, 9), 6, (5, 5), 3, (1, 2), 20], VOCAB_SIZE, 64, seed=2),
}


@dataclass(frozen=True)
class Tiny:
    model: Any  # transformers'
    spec: ModelSpec
    weights: CheckpointWeights

    def logits(self, prompt: ImagePrompt) -> Logits:
        """[num_tokens, vocab_size]"""
        import torch

        inner = self.model.model
        ids = torch.from_numpy(np.maximum(prompt.ids, 0).astype(np.int64))[None]
        are_of_images = torch.from_numpy(prompt.ids < 0)[None]
        grids = torch.tensor([[1, *image.grid] for image in prompt.images]) if prompt.images else None
        with torch.inference_mode():
            positions, _ = inner.get_rope_index(ids, are_of_images.int(), grids)
            rows = inner.language_model.embed_tokens(ids)
            rows[are_of_images] = torch.from_numpy(prompt.features)
            hidden = inner.language_model(inputs_embeds=rows, position_ids=positions).last_hidden_state
            return np.asarray(self.model.lm_head(hidden)[0].numpy())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    path = tmp_path_factory.mktemp("checkpoint")
    model = write_checkpoint(path, "glm4v")
    assert model.config.vision_config.spatial_merge_size == 1, "a grid is one of tokens"
    spec = spec_from_config(json.loads((path / "config.json").read_text()))
    return Tiny(model, spec, open_checkpoint(path).weights)


@pytest.fixture(scope="module")
def onnx(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("onnx")
    runner = onnx_runner(folder, tiny.spec, tiny.weights, max_length=MAX_LENGTH, prefill_chunk=64)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def native(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("native")
    manifest = write_native_artifact(folder, tiny.spec, weights=tiny.weights, max_length=MAX_LENGTH)
    runner = load_runner(folder, manifest, num_threads=1)
    yield runner
    runner.close()


def teacher_forced(runner: Runner, prompt: ImagePrompt) -> Logits:
    """[num_tokens, vocab_size], of one token a step."""
    return np.concatenate([run_step(runner, StepBatch((span,))).copy() for span in prompt.chunks(0, [1])])


@pytest.mark.parametrize("num_images", PROMPTS)
def test_onnx_in_fp32_gives_the_references_logits(tiny: Tiny, onnx: Runner, num_images: int) -> None:
    prompt = PROMPTS[num_images]
    expected = tiny.logits(prompt)
    np.testing.assert_allclose(teacher_forced(onnx, prompt), expected, rtol=0, atol=1e-3)
    for sizes in ([64], [7], [9, 30]):
        spans = prompt.chunks(1, sizes)
        rows = np.concatenate([run_step(onnx, StepBatch((span,))).copy() for span in spans])
        ends = [span.start + len(span.token_ids) - 1 for span in spans]
        np.testing.assert_allclose(rows, expected[ends], rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_images", PROMPTS)
def test_native_int8_stays_near(tiny: Tiny, native: Runner, num_images: int) -> None:
    """As near as on texts: random weights punish quantisation more than trained ones."""
    prompt = PROMPTS[num_images]
    actual, expected = teacher_forced(native, prompt), tiny.logits(prompt)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.1
    assert divergence(actual, expected).mean() < 0.02
    likeliest = expected.argmax(axis=1)
    ranks = (actual > np.take_along_axis(actual, likeliest[:, None], axis=1)).sum(axis=1)
    assert (ranks < 5).all() and (ranks == 0).mean() > 0.9


def divergence(actual: Logits, expected: Logits) -> Any:
    """KL from `expected`, nats a token."""
    ours, theirs = log_probabilities(actual), log_probabilities(expected)
    return (np.exp(theirs) * (theirs - ours)).sum(axis=1)
