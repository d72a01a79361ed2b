"""One image of a message."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from autoglm_client.exceptions import InvalidRequestError

from .data_url import file_in_data_url, is_data_url
from .png import png_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_IMAGE_BYTES = 20 << 20
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_LONGEST_PATH = 4096
_DETAILS = ("auto", "low", "high")
_ORIENTATION, _UPRIGHT = 0x0112, 1  # the tag of EXIF, and its value where nothing is to be turned
_SIGNATURES = (("png", b"\x89PNG\r\n\x1a\n"), ("jpeg", b"\xff\xd8\xff"))


class SavableImage(Protocol):
    """Pillow's images are such."""

    @property
    def mode(self) -> str: ...

    def save(self, fp: IO[bytes], format: str, **params: Any) -> None: ...

    def getexif(self) -> Mapping[int, Any]: ...


class Image:
    """Stands in the content of a message, before or between texts: `[Image("screen.png"), "What is on it?"]`.

    `source`: the path of a PNG, JPEG or WEBP file, its bytes, a data URL of it, an array uint8 [height, width, 3 or 4]
    of red, green, blue and alpha, or a Pillow image. It is read here and its file kept, at most 20 MiB. No URL is
    fetched. `min_pixels`, `max_pixels`: of what the server makes of it, counted as `autoglm export --max-pixels` does,
    and within the model's own limits. `detail`: OpenAI's; low is 512 x 512 pixels at most where there is no
    `max_pixels`, auto and high are the model's own limits. Raises InvalidRequestError.
    """

    __slots__ = ("file", "mark")

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | SavableImage,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        detail: str = "auto",
    ) -> None:
        self.file = _checked(_file_of(source))
        self.mark = _mark(detail, min_pixels=min_pixels, max_pixels=max_pixels)

    @property
    def media_type(self) -> str:
        return f"image/{_format_of(self.file)}"

    @property
    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.file).decode()}"

    def __repr__(self) -> str:
        return f"<Image {self.media_type}, {len(self.file):,} bytes>"


def _mark(detail: str, **limits: int | None) -> dict[str, Any]:
    """What stands for it in the messages. What changes nothing is not said."""
    given = {name: value for name, value in limits.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequestError(f"{name} of an image is {value!r:.40}; it must be a whole number from 1 on")
    if detail not in _DETAILS:
        raise InvalidRequestError(f"detail of an image is {detail!r:.40}; allowed are {', '.join(_DETAILS)}")
    return {"type": "image", **given, **({"detail": detail} if detail == "low" else {})}


def _file_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and is_data_url(source):
        return file_in_data_url(source, MAX_IMAGE_BYTES)
    if isinstance(source, (str, os.PathLike)):
        return _file_at(os.fspath(source))
    if hasattr(source, "save"):
        return _saved(source)
    if hasattr(source, "__array_interface__"):
        return png_of(source)
    raise InvalidRequestError(
        f"an image is made of a path, bytes, a data URL, an array or a Pillow image, not of {type(source).__name__}"
    )


def _file_at(path: str) -> bytes:
    if _URL.match(path):
        raise InvalidRequestError(
            f"an image is given as the URL {path!r:.80}: no URL is fetched, so give its file, its bytes or a data URL"
        )
    if len(path) > _LONGEST_PATH:
        raise InvalidRequestError(
            f"an image is given as a text of {len(path):,} characters, which is neither a path nor a data URL"
        )
    try:
        with Path(path).open("rb") as stream:
            return stream.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(f"the image {path!r:.200} cannot be read: {reason}") from None


def _saved(image: SavableImage) -> bytes:
    """Pixels are saved as they lie in memory, so how they are to be turned goes with them."""
    exif = image.getexif()
    turned = {"exif": exif} if exif.get(_ORIENTATION, _UPRIGHT) != _UPRIGHT else {}
    stream = io.BytesIO()
    try:
        image.save(stream, "PNG", compress_level=1, **turned)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"a Pillow image of mode {image.mode!r} cannot be saved as PNG: {error}") from None
    return stream.getvalue()


def _checked(file: bytes) -> bytes:
    if not file:
        raise InvalidRequestError("an image is empty: it has 0 bytes")
    if len(file) > MAX_IMAGE_BYTES:
        raise InvalidRequestError(f"an image is larger than {MAX_IMAGE_BYTES:,} bytes, the most that it may have")
    if _format_of(file) is None:
        raise InvalidRequestError("an image is no PNG, JPEG or WEBP file")
    return file


def _format_of(file: bytes) -> str | None:
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return "webp"
    return next((name for name, signature in _SIGNATURES if file.startswith(signature)), None)
