"""An image that is decoded, and how it becomes patches: here with Pillow and numpy, which say what is right."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from autoglm_engine.manifest import VisionSettings

from .resize import Size

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]  # [height, width, 3]: red, green, blue
Values = npt.NDArray[np.float32]

NUM_CHANNELS = 3
_PATCHES_AT_ONCE = 512  # an index takes eight bytes for each byte of a pixel


class Picture(Protocol):
    @property
    def size(self) -> Size:
        """In pixels."""
        ...

    def resized(self, size: Size) -> Pixels: ...

    def cut(self, pixels: Pixels, settings: VisionSettings) -> Values:
        """[height, width, 3] -> [number of patches, 3 * patch_size^2], normalised, the patches of one token after
        another, each patch channel by channel."""
        ...


class PillowPicture:
    """`image`: in RGB, upright."""

    def __init__(self, image: Image) -> None:
        self._image = image

    @property
    def size(self) -> Size:
        return self._image.height, self._image.width

    def resized(self, size: Size) -> Pixels:
        return resized_by_pillow(self._image, size)

    def cut(self, pixels: Pixels, settings: VisionSettings) -> Values:
        return _normalised(_cut(pixels, settings), settings)


def resized_by_pillow(image: Image, size: Size) -> Pixels:
    from PIL.Image import Resampling

    return np.asarray(image.resize((size[1], size[0]), resample=Resampling.BICUBIC))


def _cut(pixels: Pixels, settings: VisionSettings) -> Pixels:
    """[height, width, 3] -> [3, number of patches, patch_size^2], the patches of one token after another."""
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = (side // (patch * merge) for side in pixels.shape[:2])
    blocks = pixels.reshape(rows, merge, patch, columns, merge, patch, NUM_CHANNELS)
    return blocks.transpose(6, 0, 3, 1, 4, 2, 5).reshape(NUM_CHANNELS, -1, patch * patch)


def _normalised(patches: Pixels, settings: VisionSettings) -> Values:
    """[3, number of patches, patch_size^2] -> [number of patches, 3 * patch_size^2]"""
    _, num_patches, size = patches.shape
    values = np.empty((num_patches, NUM_CHANNELS, size), np.float32)
    tables = value_tables(settings.image_mean, settings.image_std)
    for start in range(0, num_patches, _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        for channel, table in enumerate(tables):
            values[part, channel] = table[patches[channel, part]]
    return values.reshape(num_patches, NUM_CHANNELS * size)


@lru_cache
def value_tables(mean: tuple[float, ...], std: tuple[float, ...]) -> Values:
    """[3, 256]: what each value of a channel becomes, rounded where transformers rounds."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    centred: Values = scaled - np.array(mean, np.float32)[:, None]
    return np.ascontiguousarray(centred / np.array(std, np.float32)[:, None])
