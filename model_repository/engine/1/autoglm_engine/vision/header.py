"""What an image file says of itself in its header: refused here is whatever could never be encoded, before anything is
decoded."""

from __future__ import annotations

import base64
import binascii
import re
import warnings
from io import BytesIO
from typing import TYPE_CHECKING

from autoglm_engine.errors import InvalidRequest

from .file_parts import check_parts, tells_orientation
from .limits import FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

_DATA_URL = re.compile(rb"data:image/(png|jpe?g|webp);base64,", re.IGNORECASE)
_URL = re.compile(rb"[a-z][a-z0-9+.-]{0,15}:", re.IGNORECASE)
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the image is turned by 90 degrees
MAX_DATA_URL_BYTES = 4 * -(-MAX_IMAGE_BYTES // 3) + 64


def image_file(raw: bytes, name: str) -> bytes:
    """The file in `raw`, which is that file or a data URL of it. Raises InvalidRequest; no URL is fetched."""
    if raw.startswith(b"RIFF") or not _URL.match(raw[:17]):
        _check_bytes(len(raw), name)
        return raw
    if len(raw) > MAX_DATA_URL_BYTES:
        raise InvalidRequest(f"{name} is a data URL of {len(raw)} bytes; an image may have {MAX_IMAGE_BYTES}")
    if (head := _DATA_URL.match(raw)) is None:
        raise InvalidRequest(
            f"{name} begins with {_shown(raw)}; it must be the image file itself, or a data:image/png, image/jpeg or "
            "image/webp URL in base64: no URL is fetched"
        )
    try:
        content = base64.b64decode(raw[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{name} is a data URL whose base64 cannot be read: {error}") from None
    _check_bytes(len(content), name)
    return content


def upright_size(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) in pixels, once it is turned as its EXIF data says. Raises InvalidRequest."""
    from PIL import Image, UnidentifiedImageError

    check_parts(content, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                _check_pixels(image.width, image.height, name)
                turned = _orientation(image, content) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
    except InvalidRequest:
        raise
    except Image.DecompressionBombError:
        raise InvalidRequest(f"{name} has too many pixels; an image may have {MAX_IMAGE_PIXELS} in all") from None
    except UnidentifiedImageError:
        raise InvalidRequest(f"{name} is of none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # a damaged file can raise anything in its reader
        raise InvalidRequest(f"{name} cannot be read: {error or type(error).__name__}") from None


def _orientation(image: Image, content: bytes) -> int:
    """Of a PNG Pillow decodes all of it to look for what few have."""
    if image.format == "PNG" and "exif" not in image.info and not tells_orientation(content):
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return next((known for known in range(2, 9) if value == known), 1)  # also a fraction, as Pillow compares it


def _check_bytes(num_bytes: int, name: str) -> None:
    if not 1 <= num_bytes <= MAX_IMAGE_BYTES:
        raise InvalidRequest(f"{name} has {num_bytes} bytes; an image has 1 to {MAX_IMAGE_BYTES}")


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise InvalidRequest(f"{name} is {width} x {height} pixels; an image may have {MAX_IMAGE_PIXELS} pixels in all")


def _shown(raw: bytes) -> str:
    """What stands before an image's data."""
    return repr(raw[:40].partition(b",")[0].decode("ascii", "replace"))
