"""Does the artifact see what transformers sees? Image files through its own preprocessing and tower, and through
transformers' of the same checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from autoglm_engine.manifest import Manifest
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.tower import Tower, open_tower

from autoglm_export.runtimes import Progress

from .reference import Reference

# |features - reference| / |reference|, of an image and of its worst token.
BOUNDS = {"fp32": {"relative_l2": 1e-4, "worst_token": 1e-3}}
_SIZES = {"wide": (150, 330), "tall": (420, 200), "small": (40, 30)}  # height, width


@dataclass(frozen=True, slots=True)
class ImageReport:
    tokens: int
    precision: str
    relative_l2: float
    worst_token: float

    def failures(self, name: str) -> list[str]:
        found = {
            "features": (self.relative_l2, "relative_l2"),
            "worst token's features": (self.worst_token, "worst_token"),
        }
        bounds = BOUNDS[self.precision]
        return [
            f"the {what} of the {name} image are {distance:.2e} off, above {bounds[key]:g}"
            for what, (distance, key) in found.items()
            if not distance <= bounds[key]  # also true of NaN
        ]


def compare_images(
    artifact: Path, manifest: Manifest, reference: Reference, progress: Progress
) -> dict[str, ImageReport]:
    """By the image's name; nothing for an artifact that takes none."""
    if manifest.vision is None:
        return {}
    tower, reports = open_tower(artifact, manifest, num_threads=os.cpu_count() or 1), {}
    try:
        for index, (name, size) in enumerate(_SIZES.items()):
            progress("parity: compare images", index / len(_SIZES))
            reports[name] = _compare(tower, reference, drawn(*size))
    finally:
        tower.close()
    progress("parity: compare images", 1.0)
    return reports


def _compare(tower: Tower, reference: Reference, image: bytes) -> ImageReport:
    settings = tower.settings
    expected = reference.image_features(image, settings.min_pixels, settings.max_pixels)
    actual = tower.encode(preprocess(image, settings))
    distances, norms = np.linalg.norm(actual - expected, axis=1), np.linalg.norm(expected, axis=1)
    return ImageReport(
        tokens=len(expected),
        precision=settings.precision,
        relative_l2=float(np.linalg.norm(distances) / np.linalg.norm(norms)),
        worst_token=float(np.max(distances / norms)),
    )


def drawn(height: int, width: int) -> bytes:
    """A PNG file of a slope of colours with sharp boxes on it, as screens have them."""
    from PIL import Image, ImageDraw

    rows, columns = np.mgrid[0:height, 0:width]
    slope = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    image = Image.fromarray(slope.astype(np.uint8))
    brush = ImageDraw.Draw(image)
    for index in range(12):
        left, top = index * 53 % width, index * 31 % height
        brush.rectangle(
            (left, top, left + width // 7, top + height // 11), fill=(index * 67 % 256, 255 - index * 20, 90)
        )
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
