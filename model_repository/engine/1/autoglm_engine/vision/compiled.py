"""Images that a compiled library reads, resizes and cuts, several times as fast as Pillow and numpy, to the same bits.

It reads PNG files as screenshots are; what it cannot read, Pillow reads. The exporter compiles it, in `native/images`.
Between the passes along rows and along columns values are rounded, and Pillow's releases differ in which comes first
for which size: so of each size the first image is resized by Pillow, too, and the order that gave its pixels is kept.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import VisionSettings

from .pictures import NUM_CHANNELS, Pixels, Values, resized_by_pillow, value_tables
from .resize import Size

if TYPE_CHECKING:
    from PIL.Image import Image

_KEPT_SIZES = 512
_DEPTH, _COLOUR_TYPE = 24, 25  # bytes of a PNG file whose first chunk is its header
_CHANNELS = {("RGB", 2): 3, ("RGBA", 6): 4}  # by Pillow's mode and the file's colour type
# In what Pillow notes of a file; a text in it may have any of these names, and Pillow follows that, too.
_MAY_CHANGE_PIXELS = ("transparency", "exif", "xmp", "raw profile", "interlace", "bbox")


class Passes(Enum):
    """Which comes first where an image is resized."""

    ROWS = 0
    COLUMNS = 1
    PILLOW = 2  # Pillow's own: neither order gives its pixels


class PixelLibrary:
    """`path`: of a library that this CPU runs. Raises ArtifactError. Not for use from two threads at once."""

    def __init__(self, path: Path) -> None:
        self._library = _opened(path)
        self._passes: OrderedDict[tuple[Size, Size], Passes] = OrderedDict()

    def read(self, content: bytes, image: Image) -> Pixels | None:
        """Of a file that Pillow opened as `image`, whose pixels it has not read; None: Pillow is to read it."""
        channels = _plain_channels(content, image)
        if channels is None:
            return None
        pixels = np.empty((image.height, image.width, NUM_CHANNELS), np.uint8)
        was_read = self._library.autoglm_read_png(
            content, len(content), image.width, image.height, channels, _address(pixels)
        )
        return pixels if was_read else None

    def resized(self, pixels: Pixels, size: Size) -> Pixels:
        """As Pillow does it, to the bit."""
        from PIL import Image

        key = (pixels.shape[0], pixels.shape[1]), size
        passes = self._passes.get(key)
        if passes is Passes.ROWS or passes is Passes.COLUMNS:
            return self._resized(pixels, size, passes)
        expected = resized_by_pillow(Image.fromarray(pixels), size)
        if passes is None:
            self._learn(key, pixels, expected)
        return expected

    def cut(self, pixels: Pixels, settings: VisionSettings) -> Values:
        patch, tables = settings.patch_size, value_tables(settings.image_mean, settings.image_std)
        rows, columns = (side // patch for side in pixels.shape[:2])
        values = np.empty((rows * columns, NUM_CHANNELS * patch**2), np.float32)
        pixels = np.ascontiguousarray(pixels)
        self._library.autoglm_cut(
            _address(pixels), rows, columns, patch, settings.merge_size, _address(tables), _address(values)
        )
        return values

    def _learn(self, key: tuple[Size, Size], pixels: Pixels, expected: Pixels) -> None:
        """Where both orders give the same, as of an image of one colour, the next image of that size is to tell."""
        orders = (Passes.ROWS, Passes.COLUMNS)
        found = [order for order in orders if np.array_equal(self._resized(pixels, key[1], order), expected)]
        is_one_pass = key[0][0] == key[1][0] or key[0][1] == key[1][1]
        if len(found) < len(orders) or is_one_pass:
            self._passes[key] = found[0] if found else Passes.PILLOW
        if len(self._passes) > _KEPT_SIZES:
            self._passes.popitem(last=False)

    def _resized(self, pixels: Pixels, size: Size, passes: Passes) -> Pixels:
        resized = np.empty((*size, NUM_CHANNELS), np.uint8)
        height, width = pixels.shape[:2]
        sizes = (height, width, *size)
        if not self._library.autoglm_resize(_address(pixels), *sizes, passes.value, _address(resized)):
            raise MemoryError(f"no memory to resize an image of {width} x {height} pixels")
        return resized


class CompiledPicture:
    """`pixels`: contiguous, upright."""

    def __init__(self, pixels: Pixels, library: PixelLibrary) -> None:
        self._pixels, self._library = pixels, library

    @property
    def size(self) -> Size:
        return self._pixels.shape[0], self._pixels.shape[1]

    def resized(self, size: Size) -> Pixels:
        return self._library.resized(self._pixels, size)

    def cut(self, pixels: Pixels, settings: VisionSettings) -> Values:
        return self._library.cut(pixels, settings)


def _plain_channels(content: bytes, image: Image) -> int | None:
    """Of a PNG of eight bits a channel, without palette and interlacing, which is not to be turned or made opaque."""
    if image.format != "PNG" or len(content) <= _COLOUR_TYPE or content[_DEPTH] != 8:
        return None
    if any(mark in str(name).lower() for name in image.info for mark in _MAY_CHANGE_PIXELS):
        return None
    return _CHANNELS.get((image.mode, content[_COLOUR_TYPE]))


def _address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def _opened(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.autoglm_read_png.argtypes = [ctypes.c_char_p, ctypes.c_int64, number, number, number, pointer]
    library.autoglm_read_png.restype = number
    library.autoglm_resize.argtypes = [pointer, *[number] * 5, pointer]
    library.autoglm_resize.restype = number
    library.autoglm_cut.argtypes = [pointer, *[number] * 4, pointer, pointer]
    library.autoglm_cut.restype = None
    return library
