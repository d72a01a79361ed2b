"""What the parity gate finds of images on TensorRT: both networks computed with their types, beside transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_rtx as trt
from autoglm_engine.core import Features, Positions
from autoglm_engine.manifest import VisionSettings
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

from tests.support.export.seeing_models import SEEING
from tests.support.tensorrt.network_runner import NetworkRunner
from tests.support.tensorrt.tensorrt_networks import define_network
from tests.support.tensorrt.trt_interpreter import Interpreter

pytestmark = pytest.mark.tensorrt

TYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}  # of the tower; else bf16
LIMITS = Limits(num_slots=1, max_length=96, prefill_chunk=64, vocab_size=288, num_candidates=8)
CACHE_LENGTH = 112
TEXT = np.random.default_rng(5).integers(0, 256, 40).astype(np.int32)
IMAGE = drawn(420, 200)


@dataclass(frozen=True)
class Seen:
    settings: VisionSettings
    checkpoint: Checkpoint
    reference: Reference
    patches: Patches
    expected: npt.NDArray[np.float32]  # transformers' features


@pytest.fixture(scope="module", params=SEEING)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder, settings = tmp_path_factory.mktemp(request.param), SEEING[request.param].settings
    SEEING[request.param].write(folder)
    reference = Reference.load(folder)
    expected = reference.image_features(IMAGE, settings.min_pixels, settings.max_pixels)
    return Seen(settings, open_checkpoint(folder), reference, preprocess(IMAGE, settings), expected)


def features(seen: Seen, precision: str) -> Features:
    network, vision = Network(trt, Builder(trt).handle), seen.checkpoint.vision
    assert vision is not None
    define_tower(network, vision.spec, vision.weights, TYPES[precision])
    found = Interpreter(network.definition, trt).run(tower_inputs(seen.patches, seen.settings))
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
    settings = seen.settings
    rows, columns = (side // settings.merge_size for side in seen.patches.grid)
    decoder = Decoder(runner, seen.reference, settings, precision, TEXT, "tensorrt")
    report = decoder.compare(IMAGE, (rows, columns), given)
    assert report is not None
    return report


def cost(seen: Seen, precision: str) -> dict[str, float]:
    """Of the features, in parts of the bounds."""
    distances = np.linalg.norm(features(seen, precision) - seen.expected, axis=1)
    norms = np.linalg.norm(seen.expected, axis=1)
    found = {
        "relative_l2": np.linalg.norm(distances) / np.linalg.norm(norms),
        "worst_token": np.max(distances / norms),
    }
    return {name: float(distance / BOUNDS[precision][name]) for name, distance in found.items()}


@pytest.mark.parametrize("precision", TYPES)
def test_what_16_bits_cost_the_features_is_within_the_bounds(seen: Seen, precision: str) -> None:
    assert max(cost(seen, precision).values()) < 1


@pytest.mark.parametrize("seen", ["glm4v"], indirect=True)
@pytest.mark.parametrize("precision", TYPES)
def test_the_bounds_are_not_wide(seen: Seen, precision: str) -> None:
    assert min(cost(seen, precision).values()) > 0.2


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
