"""The decoder's one definition computes what `spec.py` says, for every family variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from autoglm_engine.core import Span, StepBatch
from autoglm_export.checkpoint.weights import weight_shapes
from autoglm_export.quantize.rotation import Rotation, hadamard, mix_blocks, mixing_block, rotated

from tests.support.export.numpy_runner import NumpyRunner
from tests.support.export.tiny_decoders import SPECS, Array, expected_logits, random_weights

IDS = np.array([5, 11, 96, 0, 42, 7, 7, 63], np.int32)


class Noted(Mapping[str, Array]):
    """Weights that note which of them were read."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights, self.read = weights, set[str]()

    def __getitem__(self, name: str) -> Array:
        weight = self.weights[name]
        self.read.add(name)
        return weight

    def __iter__(self):
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("variant", SPECS)
def test_the_decoder_computes_what_the_spec_says(variant: str) -> None:
    spec = SPECS[variant]
    weights = random_weights(spec)
    runner = NumpyRunner(spec, weights)
    logits = runner.forward(StepBatch((Span(0, 0, IDS, True),)))
    np.testing.assert_allclose(logits[0], expected_logits(spec, weights, IDS)[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", SPECS)
def test_the_decoder_reads_every_weight(variant: str) -> None:
    spec = SPECS[variant]
    runner = NumpyRunner(spec, random_weights(spec))
    noted = Noted(runner.weights)
    runner.weights = noted  # type: ignore[assignment]
    runner.forward(StepBatch((Span(0, 0, IDS[:2], True),)))
    assert noted.read == set(weight_shapes(spec))


@pytest.mark.parametrize("variant", SPECS)
def test_a_rotated_model_is_the_same_function(variant: str) -> None:
    spec = SPECS[variant]
    weights = random_weights(spec)
    turned_spec, lazy = rotated(spec, weights)
    turned = {name: lazy[name] for name in lazy}
    if not spec.sandwich_norm:
        assert not np.allclose(turned["embed"], weights["embed"])
    logits = expected_logits(turned_spec, turned, IDS)
    np.testing.assert_allclose(logits, expected_logits(spec, weights, IDS), rtol=1e-3, atol=1e-4)


def test_a_rotation_spreads_an_outlier_channel() -> None:
    spec = dataclasses.replace(SPECS["llama"], hidden_size=576)
    x = np.full((1, spec.hidden_size), 0.1, np.float32)
    x[0, 77] = 100.0
    turned = Rotation.of_size(spec.hidden_size).rows(x)
    assert np.abs(turned).max() < 20
    np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(x), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8, 48, 576, 896, 4096])
def test_a_rotation_is_orthogonal(size: int) -> None:
    rotation = Rotation.of_size(size)
    x, y = np.random.default_rng(0).standard_normal((2, 3, size)).astype(np.float32)
    np.testing.assert_allclose(rotation.rows(x) @ rotation.rows(y).T, x @ y.T, atol=2e-3, rtol=1e-4)


def test_mixing_blocks_twice_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    assert mixing_block(96) == 32
    assert mixing_block(1536) == 64
    assert mixing_block(27) == 1
    np.testing.assert_allclose(mix_blocks(mix_blocks(x, 32), 32), x, atol=1e-5)
    np.testing.assert_allclose(hadamard(32) @ hadamard(32), np.eye(32), atol=1e-6)
