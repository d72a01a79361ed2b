"""An image file -> normalised patches, with Pillow, as transformers' `load_image`, Glm4vImageProcessorPil and
Qwen2VLImageProcessorPil do it.

The image is turned upright as its EXIF data says, loses its alpha channel, is resized by bicubic interpolation and cut
into patches. transformers repeats every patch for each of `temporal_patch_size` frames; the tower's weights are summed
over them instead, so here a patch is there once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import EngineError, InvalidRequest
from autoglm_engine.manifest import VisionSettings

from .file_parts import check_parts
from .limits import FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from .resize import Grid, can_become, resized
from .stop import Stop

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_CHANNELS = 3
_PATCHES_AT_ONCE = 512  # an index takes eight bytes for each byte of a pixel
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class Patches:
    """`values` float32 [rows * columns, 3 * patch_size^2]: each patch channel by channel, row by row; the patches of
    one token follow each other. `grid`: rows and columns of patches."""

    values: npt.NDArray[np.float32]
    grid: Grid


def preprocess(
    content: bytes, settings: VisionSettings, tokens: Grid | None = None, stop: Stop | None = None
) -> Patches:
    """As `decoded` and `patches_of`."""
    return patches_of(decoded(content, stop), settings, tokens, stop)


def patches_of(image: Image, settings: VisionSettings, tokens: Grid | None = None, stop: Stop | None = None) -> Patches:
    """Of an image that is decoded. `tokens`: the rows and columns of tokens to make of it, which a request may have
    limited; None: as many as `settings` say. Raises InvalidRequest for a shape beyond the limits, and GivenUp once
    `stop` was asked for."""
    stop = stop or Stop()
    height, width = resized(image.height, image.width, settings)
    if tokens is not None:
        factor = settings.patch_size * settings.merge_size
        if not can_become(image.height, image.width, tokens, settings):
            raise InvalidRequest(
                f"an image has {height // factor} x {width // factor} tokens once it is decoded, and its header said "
                f"{tokens[0]} x {tokens[1]}"
            )
        height, width = tokens[0] * factor, tokens[1] * factor
    stop.check()
    pixels = np.asarray(_resized(image, height, width))
    stop.check()
    return Patches(
        _normalised(_cut(pixels, settings), settings), (height // settings.patch_size, width // settings.patch_size)
    )


class _File(BytesIO):
    """A decoder reads it bit by bit, and so is ended between two bits."""

    def __init__(self, content: bytes, stop: Stop) -> None:
        super().__init__(content)
        self._stop = stop

    def read(self, size: int | None = -1, /) -> bytes:
        self._stop.check()
        return super().read(size)


def decoded(content: bytes, stop: Stop | None = None) -> Image:
    """The image in RGB, upright. Raises InvalidRequest for what is no image, or one beyond the limits, and GivenUp once
    `stop` was asked for."""
    from PIL import ImageOps

    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidRequest(f"an image has {len(content)} bytes; allowed are {MAX_IMAGE_BYTES}")
    check_parts(content, "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about files that it reads all the same
            with _opened(_File(content, stop or Stop())) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return _in_rgb(image)
    except EngineError:
        raise
    except Exception as error:  # a damaged file can raise anything in its reader
        raise InvalidRequest(f"an image cannot be read: {error or type(error).__name__}") from None


def _opened(file: _File) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidRequest(f"an image is of none of the formats {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InvalidRequest(
            f"an image is {image.width} x {image.height} pixels; allowed are {MAX_IMAGE_PIXELS} pixels in all"
        )
    return image


def _in_rgb(image: Image) -> Image:
    """Without alpha channel. A colour that the file calls transparent becomes white."""
    from PIL import Image

    plain = image.convert("RGB")
    if plain.info.get("transparency") is None:
        return plain
    white = Image.new("RGBA", plain.size, _WHITE)
    return Image.alpha_composite(white, plain.convert("RGBA")).convert("RGB")


def _resized(image: Image, height: int, width: int) -> Image:
    from PIL.Image import Resampling

    return image.resize((width, height), resample=Resampling.BICUBIC)


def _cut(pixels: npt.NDArray[np.uint8], settings: VisionSettings) -> npt.NDArray[np.uint8]:
    """[height, width, 3] -> [3, number of patches, patch_size^2], the patches of one token after another."""
    patch, merge = settings.patch_size, settings.merge_size
    rows, columns = (side // (patch * merge) for side in pixels.shape[:2])
    blocks = pixels.reshape(rows, merge, patch, columns, merge, patch, NUM_CHANNELS)
    return blocks.transpose(6, 0, 3, 1, 4, 2, 5).reshape(NUM_CHANNELS, -1, patch * patch)


def _normalised(patches: npt.NDArray[np.uint8], settings: VisionSettings) -> npt.NDArray[np.float32]:
    """[3, number of patches, patch_size^2] -> [number of patches, 3 * patch_size^2]"""
    _, num_patches, size = patches.shape
    values = np.empty((num_patches, NUM_CHANNELS, size), np.float32)
    tables = _tables(settings.image_mean, settings.image_std)
    for start in range(0, num_patches, _PATCHES_AT_ONCE):
        part = slice(start, start + _PATCHES_AT_ONCE)
        for channel, table in enumerate(tables):
            values[part, channel] = table[patches[channel, part]]
    return values.reshape(num_patches, NUM_CHANNELS * size)


@lru_cache
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """[3, 256]: what each value of a channel becomes, rounded where transformers rounds."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    centred: npt.NDArray[np.float32] = scaled - np.array(mean, np.float32)[:, None]
    return centred / np.array(std, np.float32)[:, None]
