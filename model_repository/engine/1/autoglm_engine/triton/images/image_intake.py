"""Images as they come to the engine with a request, and the model that encodes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from autoglm_engine.core import Features, Request
from autoglm_engine.engine.images.image_bytes import ImageBudget
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.errors import EngineError, InvalidRequest, Unavailable
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.messages import Packed
from autoglm_engine.metrics import IMAGE_DECODE_TIME, IMAGE_RESIZE_TIME, IMAGE_TOWER_TIME, Metrics
from autoglm_engine.settings.model import EngineSettings
from autoglm_engine.triton.board.seal import Kind, Seal
from autoglm_engine.vision.digest import image_digest

from .encode_message import EncodeMessage
from .feature_memory import FeatureMemory

_log = logging.getLogger(__name__)
STAGES = (IMAGE_DECODE_TIME, IMAGE_RESIZE_TIME, IMAGE_TOWER_TIME)
EncodeImage = Callable[[Packed, Packed], object]
"""A file and what is asked of it, sealed. Blocks until the features, and the seconds of each of STAGES, are in the
memory that the message names."""


class Gate(Protocol):
    """The engine's board."""

    @property
    def seal(self) -> Seal: ...

    def give_up_images(self, number: int) -> None: ...


def vision_failure(sentence: str) -> EngineError:
    """Why there are no features. `sentence`: Triton's. What the vision model itself says begins with its code; all else
    is Triton's own: the model's process is away, or shared memory has no room."""
    for kind in (InvalidRequest, Unavailable, EngineError):
        _, is_own, said = sentence.partition(f"{kind.code}: ")
        if is_own:
            return kind(said)
    _log.error("the vision model could not be asked: %s", sentence)
    return Unavailable("the vision model cannot be asked just now; try again later")


class ImageIntake:
    """`settings`: None for a model of text alone. `wake` is called, on any thread, when an image is encoded. Any
    thread."""

    def __init__(self, settings: VisionSettings | None, budget: ImageBudget, vision: Vision | None) -> None:
        self.wake: Callable[[], object] = lambda: None
        self.vision = vision
        self._settings = settings
        self._budget = budget
        if vision is not None:
            vision.wake = lambda: self.wake()

    @classmethod
    def of(
        cls, manifest: Manifest, settings: EngineSettings, gate: Gate, ask: EncodeImage, metrics: Metrics
    ) -> ImageIntake:
        """`metrics`: told of each stage on the thread that encodes."""
        budget = ImageBudget(settings.image_queue_bytes)
        if (vision_settings := manifest.vision) is None:
            return cls(None, budget, None)

        def encode(file: bytes, grid: tuple[int, int], number: int) -> Features:
            image = np.frombuffer(file, np.uint8)
            with FeatureMemory(grid[0] * grid[1], vision_settings.hidden_size) as memory:
                message = EncodeMessage(number, *grid, manifest.short_digest, memory.path)
                ask(image, gate.seal.close(Kind.IMAGE, message.packed(), beside=image))
                features, seconds = memory.read()
            for stage, value in zip(STAGES, seconds, strict=True):
                metrics.observe(stage, float(value))
            return features

        vision = Vision(encode, vision_settings.hidden_size, give_up=gate.give_up_images)
        return cls(vision_settings, budget, vision)

    def take(self, request: Request, files: Sequence[bytes]) -> Request:
        """The request with the files of its images, which count from here on. Raises InvalidRequest and QueueFull."""
        if not (request.images or files):
            return request
        if self._settings is None:
            raise InvalidRequest("this model reads text only, and the request has images")
        if len(files) != len(request.images):
            raise InvalidRequest(f"the prompt has {len(request.images)} images, and {len(files)} files came with it")
        for number, (image, file) in enumerate(zip(request.images, files, strict=True)):
            if image_digest(file, self._settings) != image.digest:
                raise InvalidRequest(f"the file of image {number} is not the one that the prompt was made for")
        return replace(request, image_bytes=self._budget.hold(files))
