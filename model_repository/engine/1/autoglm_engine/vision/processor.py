"""An image file -> normalised patches, with Pillow, as transformers' `load_image`, Glm4vImageProcessorPil and
Qwen2VLImageProcessorPil do it.

The image is turned upright as its EXIF data says, loses its alpha channel, is resized by bicubic interpolation and cut
into patches. transformers repeats every patch for each of `temporal_patch_size` frames; the tower's weights are summed
over them instead, so here a patch is there once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from autoglm_engine.errors import EngineError, InvalidRequest
from autoglm_engine.manifest import VisionSettings

from .compiled import CompiledPicture, PixelLibrary
from .file_parts import check_parts
from .limits import FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from .pictures import Picture, PillowPicture, Values
from .resize import Grid, can_become, resized
from .stop import Stop

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class Patches:
    """`values` float32 [rows * columns, 3 * patch_size^2]: each patch channel by channel, row by row; the patches of
    one token follow each other. `grid`: rows and columns of patches."""

    values: Values
    grid: Grid


def preprocess(
    content: bytes,
    settings: VisionSettings,
    tokens: Grid | None = None,
    stop: Stop | None = None,
    library: PixelLibrary | None = None,
) -> Patches:
    """As `decoded` and `patches_of`."""
    return patches_of(decoded(content, stop, library), settings, tokens, stop)


def patches_of(
    picture: Picture, settings: VisionSettings, tokens: Grid | None = None, stop: Stop | None = None
) -> Patches:
    """Of an image that is decoded. `tokens`: the rows and columns of tokens to make of it, which a request may have
    limited; None: as many as `settings` say. Raises InvalidRequest for a shape beyond the limits, and GivenUp once
    `stop` was asked for."""
    stop = stop or Stop()
    height, width = resized(*picture.size, settings)
    if tokens is not None:
        factor = settings.patch_size * settings.merge_size
        if not can_become(*picture.size, tokens, settings):
            raise InvalidRequest(
                f"an image has {height // factor} x {width // factor} tokens once it is decoded, and its header said "
                f"{tokens[0]} x {tokens[1]}"
            )
        height, width = tokens[0] * factor, tokens[1] * factor
    stop.check()
    pixels = picture.resized((height, width))
    stop.check()
    values = picture.cut(pixels, settings)
    return Patches(values, (height // settings.patch_size, width // settings.patch_size))


class _File(BytesIO):
    """A decoder reads it bit by bit, and so is ended between two bits."""

    def __init__(self, content: bytes, stop: Stop) -> None:
        super().__init__(content)
        self._stop = stop

    def read(self, size: int | None = -1, /) -> bytes:
        self._stop.check()
        return super().read(size)


def decoded(content: bytes, stop: Stop | None = None, library: PixelLibrary | None = None) -> Picture:
    """The image in RGB, upright; by `library` where it can. Raises InvalidRequest for what is no image, or one beyond
    the limits, and GivenUp once `stop` was asked for."""
    from PIL import ImageOps

    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidRequest(f"an image has {len(content)} bytes; allowed are {MAX_IMAGE_BYTES}")
    check_parts(content, "an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about files that it reads all the same
            with _opened(_File(content, stop or Stop())) as image:
                if library is not None and (pixels := library.read(content, image)) is not None:
                    return CompiledPicture(pixels, library)
                ImageOps.exif_transpose(image, in_place=True)
                rgb = _in_rgb(image)
                return PillowPicture(rgb) if library is None else CompiledPicture(np.array(rgb), library)
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
