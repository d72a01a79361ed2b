"""How many parts an image file has: of PNG chunks, JPEG segments and scans, each takes time whatever its size.

A scan of a progressive JPEG of a few bytes passes over all pixels, and a chunk of a compressed profile grows a thousand
times: a file within the limits of bytes and pixels could keep a processor busy for hours. Parts are counted where
Pillow and libjpeg read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoglm_engine.errors import InvalidRequest

MAX_SCANS = 100  # of a JPEG; encoders make some ten
MAX_SEGMENTS = 2048
MAX_JUNK_BYTES = 4096  # between segments, which Pillow skips one by one
MAX_CHUNKS = 128  # of a PNG that hold no pixels
_MIN_DATA_CHUNKS, _BYTES_A_DATA_CHUNK = 256, 512  # of those that do
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_ORIENTATION = (b"eXIf", b"Raw profile", b"com.adobe.xmp")  # a chunk's kind, or what begins a text
_PIXELS = frozenset((b"IDAT", b"fdAT", b"fcTL"))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_EOI, _SOS = 0xD9, 0xDA
_WITH_LENGTH = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE))


def check_parts(content: bytes, name: str) -> None:
    """Raises InvalidRequest for a file of more parts than any encoder makes. Of WebP libwebp counts them."""
    if content.startswith(_PNG):
        _check_png(content, name)
    elif content.startswith(_JPEG):
        _check_jpeg(content, name)


def tells_orientation(png: bytes) -> bool:
    """Whether a chunk may say how the image is to be turned."""
    others = (png[start:end] for kind, start, end in _chunks(png) if kind not in _PIXELS)
    return any(mark in chunk for chunk in others for mark in _ORIENTATION)


def _check_png(content: bytes, name: str) -> None:
    max_data = _MIN_DATA_CHUNKS + len(content) // _BYTES_A_DATA_CHUNK
    num_data, num_others = 0, 0
    for kind, _, _ in _chunks(content):
        if kind in _PIXELS:
            num_data += 1
        else:
            num_others += 1
        if num_data > max_data or num_others > MAX_CHUNKS:
            raise InvalidRequest(
                f"{name} is a PNG of too many chunks; {max_data} of pixels and {MAX_CHUNKS} others are allowed"
            )


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each, where it begins, and where the next one does. IEND is none."""
    at = len(_PNG)
    while (kind := png[at + 4 : at + 8]) not in (b"", b"IEND"):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield kind, at, end
        at = end


def _check_jpeg(content: bytes, name: str) -> None:
    at, num_scans, num_junk = len(_JPEG), 0, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(content, at)
        kind = content[found.end() - 1] if found else _EOI
        if found is None or (kind == _EOI and num_scans):
            return
        num_junk += 0 if num_scans else found.start() - at
        num_scans += kind == _SOS
        if num_scans > MAX_SCANS:
            raise InvalidRequest(f"{name} is a JPEG of more than {MAX_SCANS} scans, which is the limit")
        if num_junk > MAX_JUNK_BYTES:
            raise InvalidRequest(f"{name} is a JPEG of more than {MAX_JUNK_BYTES} bytes between its segments")
        at = found.end()
        if kind in _WITH_LENGTH:
            at += int.from_bytes(content[at : at + 2], "big")
    raise InvalidRequest(f"{name} is a JPEG of more than {MAX_SEGMENTS} segments, which is the limit")
