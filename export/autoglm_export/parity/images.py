"""Does the artifact see what transformers sees? Image files through its own preprocessing, tower and decoder, and
through transformers' of the same checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from autoglm_engine.core import TokenIds
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.tower import Tower

from autoglm_export.quantize.rotation import Rotation
from autoglm_export.runtimes import Progress

from .image_answers import AnswerReport, Decoder
from .reference import Reference

# |features - reference| / |reference|, of an image and of its worst token.
# Those of 16 bits are TensorRT's: a small tower of random weights, computed with its types, is 1.1e-2 and 3.7e-2 off,
# its worst token 2.9e-2 and 8.2e-2; no card has shown its own figures yet.
BOUNDS = {
    "fp32": {"relative_l2": 1e-4, "worst_token": 1e-3},
    "fp16": {"relative_l2": 2e-2, "worst_token": 1e-1},
    "bf16": {"relative_l2": 5e-2, "worst_token": 2e-1},
}
_SIZES = {"wide": (150, 330), "tall": (420, 200), "small": (40, 30)}  # height, width


@dataclass(frozen=True, slots=True)
class ImageReport:
    tokens: int
    precision: str
    relative_l2: float
    worst_token: float
    answer: AnswerReport | None  # None: the image does not fit into a slot

    def failures(self, name: str) -> list[str]:
        found = {
            "features": (self.relative_l2, "relative_l2"),
            "worst token's features": (self.worst_token, "worst_token"),
        }
        bounds = BOUNDS[self.precision]
        behind = [f"the {failure}, for the {name} image" for failure in self.answer.failures] if self.answer else []
        return behind + [
            f"the {what} of the {name} image are {distance:.2e} off, above {bounds[key]:g}"
            for what, (distance, key) in found.items()
            if not distance <= bounds[key]  # also true of NaN
        ]


def compare_images(
    artifact: Path,
    manifest: Manifest,
    runner: Runner,
    reference: Reference,
    text: TokenIds,
    rotation: Rotation | None,
    progress: Progress,
) -> dict[str, ImageReport]:
    """By the image's name; nothing for an artifact that takes none. `text`: what stands around images. `rotation`:
    of the features that the decoder reads."""
    if manifest.vision is None:
        return {}
    decoder = Decoder(runner, reference, manifest.vision, manifest.precision, text, manifest.runtime)
    tower, reports = open_tower(artifact, manifest, num_threads=os.cpu_count() or 1), {}
    try:
        for index, (name, size) in enumerate(_SIZES.items()):
            progress("parity: compare images", index / len(_SIZES))
            reports[name] = _compare(tower, decoder, drawn(*size), rotation)
    finally:
        tower.close()
    progress("parity: compare images", 1.0)
    return reports


def _compare(tower: Tower, decoder: Decoder, image: bytes, rotation: Rotation | None) -> ImageReport:
    settings, patches = tower.settings, preprocess(image, tower.settings)
    expected = decoder.reference.image_features(image, settings.min_pixels, settings.max_pixels)
    expected = expected if rotation is None else rotation.features(expected)
    actual = tower.encode(patches)
    rows, columns = (side // settings.merge_size for side in patches.grid)
    distances, norms = np.linalg.norm(actual - expected, axis=1), np.linalg.norm(expected, axis=1)
    return ImageReport(
        tokens=len(expected),
        precision=settings.precision,
        relative_l2=float(np.linalg.norm(distances) / np.linalg.norm(norms)),
        worst_token=float(np.max(distances / norms)),
        answer=decoder.compare(image, (rows, columns), actual),
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
