"""What is read of an image's header is what comes out when it is decoded."""

from __future__ import annotations

import base64
import zlib
from io import BytesIO
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.vision.header import image_file, upright_size
from autoglm_engine.vision.limits import MAX_IMAGE_BYTES
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.resize import token_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.support.vision.settings import vision_settings

SETTINGS = vision_settings()
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{}"/></x:xmpmeta>'
PNG = b"\x89PNG\r\n\x1a\n"

STARTS = [b"", PNG, b"\xff\xd8\xff", b"RIFF::::WEBP", b"data:image/png;base64,"]


def file_of(kind: str, orientation: int, told: str, size: tuple[int, int] = (60, 140)) -> bytes:
    image, stream, options = Image.new("RGB", size, "red"), BytesIO(), dict[str, Any]()
    if told == "exif":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    elif told == "xmp" and kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.format(orientation))
        options["pnginfo"] = info
    elif told == "xmp":
        options["xmp"] = XMP.format(orientation).encode()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("told", ["exif", "xmp", "nothing"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_the_grid_of_the_header_is_that_of_the_pixels(kind: str, orientation: int, told: str) -> None:
    content = file_of(kind, orientation, told)
    decoded = preprocess(content, SETTINGS).grid
    found = token_grid(*upright_size(content, "it"), SETTINGS)
    assert found == tuple(side // SETTINGS.merge_size for side in decoded)


def test_an_orientation_behind_the_pixels_counts() -> None:
    content = file_of("PNG", 6, "exif")
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert upright_size(moved, "it") == upright_size(content, "it") == (60, 140)
    assert preprocess(moved, SETTINGS).grid == preprocess(content, SETTINGS).grid


def test_an_orientation_that_is_written_as_a_fraction_counts_as_in_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    entry = whole.index(b"\x12\x01" if whole[6:8] == b"II" else b"\x01\x12")
    order: Any = "little" if whole[6:8] == b"II" else "big"
    kind, offset = (5).to_bytes(2, order), (len(whole) - 6).to_bytes(4, order)
    changed = whole[: entry + 2] + kind + whole[entry + 4 : entry + 8] + offset + whole[entry + 12 :]
    stream = BytesIO()
    Image.new("RGB", (60, 140)).save(stream, "JPEG", exif=changed + (6).to_bytes(4, order) + (1).to_bytes(4, order))
    decoded = preprocess(stream.getvalue(), SETTINGS).grid
    assert decoded[0] < decoded[1], "the fraction is not read as an orientation"
    found = token_grid(*upright_size(stream.getvalue(), "it"), SETTINGS)
    assert found == tuple(side // SETTINGS.merge_size for side in decoded)


def test_an_image_of_far_too_many_pixels_is_told_so() -> None:
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    content = PNG + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    with pytest.raises(InvalidRequest, match="it has too many pixels"):
        upright_size(content + bytes(4) + b"IDAT", "it")


@settings(deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", PNG, b"\xff\xd8\xff", b"RIFF::::WEBP", b"data:image/png;base64,"])
)
def test_whatever_comes_is_a_size_or_one_sentence(junk: bytes, start: bytes) -> None:
    try:
        height, width = upright_size(image_file(start + junk, "images[0]"), "images[0]")
    except InvalidRequest as error:
        assert str(error).startswith("images[0]") and len(str(error)) < 400 and "\n" not in str(error)
    else:
        assert height * width > 0


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["png", "jpeg", "jpg", "webp", "PNG"]))
def test_a_data_url_is_its_file(content: bytes, kind: str) -> None:
    url = f"data:image/{kind};base64,".encode() + base64.b64encode(content)
    assert image_file(url, "it") == content


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"http://a/b.png", "no URL is fetched"),
        (b"HTTPS://a/b.png", "no URL is fetched"),
        (b"file:/etc/passwd", "no URL is fetched"),
        (b"data:image/gif;base64,AAAA", "it begins with 'data:image/gif;base64'; it must be"),
        (b"data:image/png,AAAA", "no URL is fetched"),
        (b"data:image/png;base64,AA AA", "base64 cannot be read"),
        (b"data:image/png;base64,AAA", "base64 cannot be read"),
        (b"data:image/png;base64,", "it has 0 bytes"),
        (b"", "it has 0 bytes"),
        (b"\x89" * (MAX_IMAGE_BYTES + 1), f"an image has 1 to {MAX_IMAGE_BYTES}"),
        (b"data:image/png;base64," + b"A" * (MAX_IMAGE_BYTES * 3 // 2), f"an image may have {MAX_IMAGE_BYTES}"),
    ],
)
def test_what_is_no_file_and_no_data_url_of_one_is_refused(raw: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        image_file(raw, "it")
    assert len(str(refusal.value)) < 300


def test_a_bomb_is_refused_from_its_header() -> None:
    header = PNG + b"\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(4)
    with pytest.raises(InvalidRequest):
        upright_size(header + bytes(100), "it")
    stream = BytesIO()
    Image.new("1", (20_000, 2_000)).save(stream, "PNG")
    with pytest.raises(InvalidRequest, match="20000 x 2000 pixels"):
        upright_size(stream.getvalue(), "it")
