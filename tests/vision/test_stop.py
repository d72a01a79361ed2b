"""An encode that nobody wants ends at each of its stages, and leaves the tower as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.errors import GivenUp
from autoglm_engine.vision.processor import decoded, preprocess
from autoglm_engine.vision.stop import Stop
from autoglm_engine.vision.tower import OnnxTower
from autoglm_export.checkpoint.opening import open_checkpoint
from autoglm_export.model.spec import RopeSpec
from autoglm_export.vision_artifact import lower_vision

from tests.support.export.tiny_glm4v import image_file, write_tiny_glm4v
from tests.support.vision.settings import vision_settings

FILE = image_file(400, 400, kind="PNG")


class StopAfter(Stop):
    """Is asked for with so many checks."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.ask()
        super().check()


class StopAtOnce(Stop):
    """While something is done that can be ended."""

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        with super().ended_by(end):
            self.ask()
            yield


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_moment_of_preprocessing_may_be_the_last(kind: str) -> None:
    file, whole = image_file(90, 60, kind=kind), StopAfter(10**6)
    preprocess(file, vision_settings(), stop=whole)
    num_checks = 10**6 - whole.left
    assert num_checks > 4
    for checks in range(num_checks):
        with pytest.raises(GivenUp, match="nobody wants this image any more"):
            preprocess(file, vision_settings(), stop=StopAfter(checks))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_file_is_read_bit_by_bit(kind: str) -> None:
    rng = np.random.default_rng(0)
    decoded(_noise(rng, kind), stop := StopAfter(10**6))
    assert 10**6 - stop.left > 10


def _noise(rng: np.random.Generator, kind: str) -> bytes:
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.fromarray(rng.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(stream, kind, quality=95)
    return stream.getvalue()


@pytest.mark.parity
def test_a_tower_that_was_stopped_computes_the_next_image_as_before(tmp_path: Path) -> None:
    write_tiny_glm4v(tmp_path / "checkpoint")
    vision = open_checkpoint(tmp_path / "checkpoint").vision
    assert vision is not None
    settings = lower_vision(vision, RopeSpec(theta=1e4, dims=16, interleaved=True, sections=(2, 3, 3)), tmp_path)
    tower = OnnxTower(tmp_path / settings.model, settings, num_threads=2)
    patches = preprocess(FILE, settings)
    before = tower.encode(patches)
    asked = Stop()
    asked.ask()
    for stop in (StopAtOnce(), asked):
        with pytest.raises(GivenUp):
            tower.encode(patches, stop)
        np.testing.assert_array_equal(tower.encode(patches, Stop()), before)


def test_an_end_is_called_once_and_only_while_there_is_something_to_end() -> None:
    stop, ends = Stop(), list[int]()
    with stop.ended_by(lambda: ends.append(1)):
        threads = [threading.Thread(target=stop.ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stop.ask()
    assert ends == [1]
    with pytest.raises(GivenUp), stop.ended_by(lambda: ends.append(2)):
        raise AssertionError("begun although it was asked for")
    assert ends == [1]
