"""Pixels as a PNG file. Source of the format: the PNG specification (W3C)."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from autoglm_client.exceptions import InvalidRequestError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}  # by channels: red, green, blue; and alpha
_BITS = 8
_UP = 2  # the filter: each byte less the one above it
_FAST = 1  # of zlib's levels


def png_of(pixels: Any) -> bytes:
    """`pixels`: uint8 [height, width, 3 or 4]. Raises InvalidRequestError for another array."""
    import numpy as np

    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in _COLOUR_TYPES or not array.size:
        raise InvalidRequestError(
            f"an image is an array {array.dtype} {list(array.shape)}: it must be uint8 [height, width, 3 or 4]"
        )
    height, width, channels = array.shape
    rows = array.reshape(height, width * channels)
    lines = np.empty((height, 1 + width * channels), np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, _BITS, _COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(lines.tobytes(), _FAST)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
