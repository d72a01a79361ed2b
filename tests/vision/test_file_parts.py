"""Files within the limits of bytes and pixels whose reading would take minutes to hours."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.vision.file_parts import MAX_CHUNKS, MAX_SCANS, check_parts
from autoglm_engine.vision.header import upright_size
from autoglm_engine.vision.limits import MAX_IMAGE_BYTES
from autoglm_engine.vision.processor import preprocess
from PIL import Image

from tests.support.vision.settings import vision_settings

SETTINGS = vision_settings()


def file_of(kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    Image.effect_noise((120, 60), 90).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


PNG = file_of("PNG")
JPEG = file_of("JPEG", progressive=True)


def chunk(kind: bytes, content: bytes) -> bytes:
    told = kind + content
    return len(content).to_bytes(4, "big") + told + zlib.crc32(told).to_bytes(4, "big")


def with_chunks(chunks: bytes) -> bytes:
    """Behind the header of the PNG."""
    return PNG[:33] + chunks + PNG[33:]


def with_segments(segments: bytes) -> bytes:
    """Before everything in the JPEG."""
    return JPEG[:2] + segments + JPEG[2:]


def with_scans(count: int) -> bytes:
    """The last scan of the JPEG, again and again."""
    start, end = JPEG.rindex(b"\xff\xda"), JPEG.rindex(b"\xff\xd9")
    return JPEG[:end] + JPEG[start:end] * count + JPEG[end:]


def segment(kind: int, content: bytes) -> bytes:
    return bytes((0xFF, kind)) + (len(content) + 2).to_bytes(2, "big") + content


PROFILE = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20)))
BOMBS = {
    "chunks that say nothing": with_chunks(chunk(b"abCd", b"") * 100_000),
    "profiles that grow": with_chunks(PROFILE * 1000),
    "pixels byte by byte": with_chunks(chunk(b"IDAT", b"") * 100_000),
    "scans": with_scans(300),
    "scans behind others' markers": with_scans(300).replace(b"\xff\xd8", b"\xff\xd8" + segment(0xFE, b"\xff\xd9"), 1),
    "scans behind an end that is none yet": with_scans(300).replace(b"\xff\xd8", b"\xff\xd8\xff\xd9", 1),
    "segments": with_segments(segment(0xFE, b"") * 100_000),
    "fill bytes": with_segments(b"\xff" * 100_000),
    "junk": with_segments(b"\0" * 100_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_from_its_header_and_where_it_would_be_decoded(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"it is a (PNG|JPEG) of"):
        upright_size(BOMBS[name], "it")
    with pytest.raises(InvalidRequest, match=r"an image is a (PNG|JPEG) of"):
        preprocess(BOMBS[name], SETTINGS)


def motion_photo() -> bytes:
    """A film lies behind the image, whose bytes look like markers now and then."""
    return JPEG + b"\xff\xda" * 5000 + os.urandom(1 << 16)


def in_pieces(png: bytes, size: int) -> bytes:
    start, end = png.index(b"IDAT") - 4, len(png) - 12
    pixels = png[start + 8 : end - 4]
    return (
        png[:start] + b"".join(chunk(b"IDAT", pixels[at : at + size]) for at in range(0, len(pixels), size)) + png[end:]
    )


ORDINARY = {
    "PNG": PNG,
    "PNG in many pieces": in_pieces(PNG, 600),
    "PNG with texts": with_chunks(chunk(b"tEXt", b"a\0b") * (MAX_CHUNKS - 2)),
    "JPEG": file_of("JPEG"),
    "progressive JPEG": JPEG,
    "JPEG with a few scans more": with_scans(MAX_SCANS - 20),
    "JPEG with restarts": file_of("JPEG", restart_marker_blocks=1),
    "JPEG with a thumbnail": with_segments(segment(0xE1, b"\xff\xda" * 3000)),
    "motion photo": motion_photo(),
    "WEBP": file_of("WEBP"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_are_read(name: str) -> None:
    assert upright_size(ORDINARY[name], "it") == (60, 120)
    assert preprocess(ORDINARY[name], SETTINGS).grid


@pytest.mark.parametrize("start", [PNG[:8], PNG[:20], PNG[:-12], JPEG[:2], JPEG[:3], JPEG[:-2], b"\xff\xd8\xff", b""])
def test_a_file_that_is_cut_off_has_few_parts(start: bytes) -> None:
    check_parts(start, "it")


def test_the_largest_files_that_hold_no_marker_are_looked_at_once() -> None:
    check_parts(b"\xff\xd8" + segment(0xDA, b"") + b"\xff\0" * (MAX_IMAGE_BYTES // 2), "it")
