"""What the parity gate finds of images on TensorRT: both networks computed with their types, beside transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
from autoglm_engine.core import Features, Positions
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.tensorrt.tower import tower_inputs
from autoglm_engine.vision.processor import Patches, preprocess
from autoglm_export.checkpoint.base import Checkpoint
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.parity import image_answers
from autoglm_export.parity.image_answers import AnswerReport, Decoder
from autoglm_export.parity.images import BOUNDS, drawn
from autoglm_export.parity.reference import Reference
from autoglm_export.tensorrt.build import Builder
from autoglm_export.tensorrt.network import Network
from autoglm_export.tensorrt.profiles import feature_rows_of
from autoglm_export.tensorrt.vision import define_tower

from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.tensorrt_networks import define_network
from tests.support.tensorrt.trt_interpreter import Interpreter
from tests.support.vision.settings import vision_settings

pytestmark = pytest.mark.tensorrt

TYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}  # of the tower; else bf16
LIMITS = Limits(num_slots=1, max_length=96, prefill_chunk=64, vocab_size=288, num_candidates=8, feature_size=64)
CACHE_LENGTH = 112
TEXT = np.random.default_rng(5).integers(0, 256, 40).astype(np.int32)
IMAGE = drawn(420, 200)


@dataclass(frozen=True)
class Seen:
    checkpoint: Checkpoint
    reference: Reference
    patches: Patches
    expected: npt.NDArray[np.float32]  # transformers' features


@pytest.fixture(scope="module")
def seen(tiny_glm4v: Path) -> Seen:
    reference, settings = Reference.load(tiny_glm4v), vision_settings()
    expected = reference.image_features(IMAGE, settings.min_pixels, settings.max_pixels)
    return Seen(open_checkpoint(tiny_glm4v), reference, preprocess(IMAGE, settings), expected)


def features(seen: Seen, precision: str) -> Features:
    network, vision = Network(trt, Builder(trt).handle), seen.checkpoint.vision
    assert vision is not None
    define_tower(network, vision.spec, vision.weights, TYPES[precision])
    found = Interpreter(network.definition, trt).run(tower_inputs(seen.patches, vision_settings()))
    return np.asarray(found["features"], np.float32)


def answer(seen: Seen, precision: str, given: Features) -> AnswerReport:
    made = define_network(
        seen.checkpoint.spec,
        seen.checkpoint.weights,
        precision,
        cache_length=CACHE_LENGTH,
        num_candidates=LIMITS.num_candidates,
        texts=[TEXT] * 4 if precision == "fp8" else (),
        feature_rows=feature_rows_of(LIMITS.num_slots, LIMITS.prefill_chunk),
    )
    runner = NetworkRunner(made, LIMITS, cache_length=CACHE_LENGTH, unwritten=0.0)
    settings = vision_settings()
    rows, columns = (side // settings.merge_size for side in seen.patches.grid)
    decoder = Decoder(runner, seen.reference, settings, precision, TEXT, "tensorrt")
    report = decoder.compare(IMAGE, (rows, columns), given)
    assert report is not None
    return report


@pytest.mark.parametrize("precision", TYPES)
def test_what_16_bits_cost_the_features_is_within_the_bounds(seen: Seen, precision: str) -> None:
    distances = np.linalg.norm(features(seen, precision) - seen.expected, axis=1)
    norms = np.linalg.norm(seen.expected, axis=1)
    bounds = BOUNDS[precision]
    assert bounds["relative_l2"] / 5 < np.linalg.norm(distances) / np.linalg.norm(norms) < bounds["relative_l2"]
    assert bounds["worst_token"] / 5 < np.max(distances / norms) < bounds["worst_token"]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8", "int4"])
def test_the_gate_tells_rounding_from_tokens_in_the_wrong_places(
    seen: Seen, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = features(seen, precision if precision in TYPES else "bf16")
    right = answer(seen, precision, given)
    assert not right.failures
    monkeypatch.setattr(image_answers, "rope_positions", along_the_text)
    assert answer(seen, precision, given).failures


def along_the_text(images: object, start: int, count: int) -> Positions:
    return np.tile(np.arange(start, start + count, dtype=np.int32), (3, 1))


def test_only_tensorrt_may_round_the_tower() -> None:
    assert AnswerReport("fp16", 0.015, 1.0, "onnx").failures
    assert not AnswerReport("fp16", 0.015, 1.0, "tensorrt-rtx").failures
