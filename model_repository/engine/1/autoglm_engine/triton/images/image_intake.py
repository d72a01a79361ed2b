"""Images as they come to the engine with a request, and the model that encodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from autoglm_engine.core import Features, Request
from autoglm_engine.engine.images.image_bytes import ImageBudget
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.vision.digest import image_digest

EncodeImage = Callable[[bytes, tuple[int, int], str], Features]
"""A file, its grid and the artifact (`Manifest.short_digest`) -> float32 [rows * columns, hidden_size]. Blocks."""


def vision_of(manifest: Manifest, encode: EncodeImage) -> Vision | None:
    """None for a model of text alone."""
    if manifest.vision is None:
        return None
    artifact = manifest.short_digest
    return Vision(lambda file, grid: encode(file, grid, artifact), manifest.vision.hidden_size)


class ImageIntake:
    """`settings`: None for a model of text alone. Any thread."""

    def __init__(self, settings: VisionSettings | None, budget: ImageBudget) -> None:
        self._settings = settings
        self._budget = budget

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
