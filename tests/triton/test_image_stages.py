"""How long each part of encoding an image took, from the model that encodes to the engine's metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.core import Features, ImageSpan, Request, SamplingOptions
from autoglm_engine.engine.images.image_bytes import ImageBudget
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.messages import Packed
from autoglm_engine.metrics import IMAGE_DECODE_TIME, IMAGE_RESIZE_TIME, IMAGE_TOWER_TIME
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.triton.board.acks import AckBoard
from autoglm_engine.triton.board.finder import ImageBoards
from autoglm_engine.triton.board.server_identity import ServerIdentity
from autoglm_engine.triton.images.encode_message import EncodeMessage
from autoglm_engine.triton.images.feature_memory import FeatureMemory, check_path, write_features
from autoglm_engine.triton.images.image_intake import ImageIntake
from autoglm_engine.triton.images.vision_model import Encoder, encode_image
from autoglm_engine.vision.digest import image_digest
from autoglm_engine.vision.processor import Patches
from autoglm_engine.vision.stop import Stop

from tests.support.engine.memory_metrics import MemoryMetrics
from tests.support.export.tiny_glm4v import image_file
from tests.support.vision.settings import BLIND, vision_settings

GRID = (2, 3)
FILE = image_file(56, 84)


@dataclass
class FakeTower:
    """Its features are ones."""

    settings: VisionSettings = field(default_factory=vision_settings)

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        return np.ones((len(patches.values) // self.settings.merge_size**2, self.settings.hidden_size), np.float32)

    def close(self) -> None: ...


def test_each_stage_is_timed_in_its_order() -> None:
    readings = iter([10.0, 11.0, 13.0, 17.0])
    encoded = encode_image(image_file(56, 84), GRID, Encoder(FakeTower()), clock=lambda: next(readings))
    assert encoded.seconds.tolist() == [1, 2, 4]
    assert encoded.features.shape == (6, FakeTower().settings.hidden_size)


def test_an_image_of_another_grid_than_its_header_said_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 x 3 tokens once it is decoded, and its header said 3 x 2"):
        encode_image(image_file(56, 84), (3, 2), Encoder(FakeTower()))


def test_the_metrics_have_the_time_of_each_stage(tmp_path: Path) -> None:
    settings = vision_settings()
    metrics, features = MemoryMetrics(), np.arange(6 * settings.hidden_size, dtype=np.float32).reshape(6, -1)
    server = ServerIdentity.of(os.getpid())
    given: list[tuple[bytes, EncodeMessage]] = []

    def ask(image: Packed, sealed: Packed) -> None:
        packed, _ = ImageBoards(server, tmp_path).open(sealed, image)
        message = EncodeMessage.unpacked(packed)
        given.append((image.tobytes(), replace(message, memory="")))
        write_features(message.memory, features, np.array([0.25, 0.5, 2.0], np.float32))

    manifest = replace(BLIND, vision=settings)
    with AckBoard(4, tmp_path, server) as board:
        intake = ImageIntake.of(manifest, plain_settings(), board, ask, metrics)
        assert intake.vision is not None
        np.testing.assert_array_equal(intake.vision.encode(b"a file", GRID, 7), features)
    assert given == [(b"a file", EncodeMessage(7, *GRID, manifest.short_digest, ""))]
    totals = [metrics.histogram(stage).total for stage in (IMAGE_DECODE_TIME, IMAGE_RESIZE_TIME, IMAGE_TOWER_TIME)]
    assert totals == [0.25, 0.5, 2.0]


def test_a_model_of_text_alone_encodes_nothing(tmp_path: Path) -> None:
    with AckBoard(4, tmp_path, ServerIdentity.of(os.getpid())) as board:
        intake = ImageIntake.of(BLIND, plain_settings(), board, lambda *asked: ([], []), MemoryMetrics())
    assert intake.vision is None


def test_the_file_of_another_image_than_the_prompts_is_refused() -> None:
    """Files come beside what is sealed; their digests are in it."""
    settings = vision_settings()
    image = ImageSpan(1, GRID, image_digest(FILE, settings))
    request = Request("a", np.full(9, settings.image_token_id, np.int32), SamplingOptions(1), images=(image,))
    intake = ImageIntake(settings, ImageBudget(1 << 20), None)
    assert intake.take(request, [FILE]).image_bytes.num_bytes == len(FILE)
    for files in ([FILE[:-1]], [FILE[:-1] + b"!"], [b""]):
        with pytest.raises(InvalidRequest, match="the file of image 0 is not the one that the prompt was made for"):
            intake.take(request, files)
    for number, wrong in ((0, []), (2, [FILE, FILE])):
        with pytest.raises(InvalidRequest, match=f"the prompt has 1 images, and {number} files came with it"):
            intake.take(request, wrong)


def test_features_come_back_through_memory_of_the_engine() -> None:
    features, seconds = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([1, 2, 3], np.float32)
    with FeatureMemory(4, 3) as memory:
        assert check_path(memory.path) == memory.path
        for values in (features, features + 1):  # an answer that is sent again
            write_features(memory.path, values, seconds)
        found, times = memory.read()
        np.testing.assert_array_equal(found, features + 1)
        np.testing.assert_array_equal(times, seconds)
        path = memory.path
    with pytest.raises(OSError):
        write_features(path, features, seconds)


@pytest.mark.parametrize("shape", [(4, 2), (5, 3)])
def test_features_of_another_size_are_refused(shape: tuple[int, int]) -> None:
    with FeatureMemory(4, 3) as memory:
        with pytest.raises(ValueError, match="have 0 bytes, not 60"):
            memory.read()
        write_features(memory.path, np.zeros(shape, np.float32), np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="the features of an image have"):
            memory.read()


@pytest.mark.parametrize("path", ["", "/dev/shm/x", "/proc/self/fd/3", "/proc/1/fd/3/../4", "/proc/1/fd/3\n"])
def test_no_other_file_is_written(path: str) -> None:
    with pytest.raises(InvalidRequest, match="the memory of an image is none of the engine's"):
        check_path(path)
