"""Images that the compiled library reads, resizes and cuts: the bits of Pillow and numpy, on every class of CPUs."""

from __future__ import annotations

import zlib
from functools import lru_cache
from io import BytesIO

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.vision import compiled
from autoglm_engine.vision.compiled import Passes, PixelLibrary
from autoglm_engine.vision.pictures import PillowPicture, Pixels
from autoglm_engine.vision.processor import preprocess
from autoglm_export import compiler
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from tests.support.export.tiny_glm4v import image_file
from tests.support.vision.settings import vision_settings

SETTINGS = vision_settings()
TARGETS = [target.name for target in compiler.runnable_targets()]
SIZES = st.integers(1, 200)


@lru_cache
def library(target: str) -> PixelLibrary:
    (found,) = [each for each in compiler.TARGETS if each.name == target]
    return PixelLibrary(compiler.build(compiler.PIXELS_SOURCE, found))


def noise(height: int, width: int, channels: int, seed: int = 0) -> Pixels:
    """Half of it smooth, so that every filter of PNG is worth while somewhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    ramp = np.add.outer(np.arange(height), 3 * np.arange((width + 1) // 2))[..., None]
    pixels[:, : ramp.shape[1]] = (ramp * np.arange(1, channels + 1)).astype(np.uint8)
    return pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, colour_type: int, stream: bytes, *extra: bytes, size: int = 1 << 16) -> bytes:
    """`stream` in IDAT chunks of `size` bytes; `extra`: chunks between header and pixels."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour_type, 0, 0, 0])
    parts = [chunk(b"IDAT", stream[at : at + size]) for at in range(0, max(len(stream), 1), size)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *extra, *parts, chunk(b"IEND", b"")])


def filtered(pixels: Pixels, filters: list[int]) -> bytes:
    """Rows whose filters take turns; what they hold are any bytes, so the image is another one than `pixels`."""
    rows = pixels.reshape(len(pixels), -1)
    return b"".join(bytes([filters[y % len(filters)]]) + row.tobytes() for y, row in enumerate(rows))


def by_pillow(content: bytes) -> Pixels:
    return np.array(Image.open(BytesIO(content)).convert("RGB"))


def read(content: bytes, target: str = TARGETS[-1]) -> Pixels | None:
    with Image.open(BytesIO(content)) as image:
        return library(target).read(content, image)


@pytest.mark.parametrize("target", TARGETS)
@examples(max_examples=25, deadline=None)
@given(height=SIZES, width=SIZES, has_alpha=st.booleans(), level=st.integers(0, 9), seed=st.integers(0, 9))
@example(height=1, width=1, has_alpha=True, level=6, seed=0)
def test_a_png_has_the_pixels_that_pillow_reads(
    target: str, height: int, width: int, has_alpha: bool, level: int, seed: int
) -> None:
    stream = BytesIO()
    Image.fromarray(noise(height, width, 3 + has_alpha, seed)).save(stream, "PNG", compress_level=level)
    np.testing.assert_array_equal(read(stream.getvalue(), target), by_pillow(stream.getvalue()))


STRATEGIES = {
    "default": zlib.Z_DEFAULT_STRATEGY,
    "filtered": zlib.Z_FILTERED,
    "only Huffman": zlib.Z_HUFFMAN_ONLY,
    "runs": zlib.Z_RLE,
    "fixed codes": zlib.Z_FIXED,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [7, 100_000])
def test_every_filter_and_every_kind_of_block_is_read(target: str, strategy: str, size: int) -> None:
    for colour_type, channels in ((2, 3), (6, 4)):
        raw = filtered(noise(90, 131, channels), [0, 1, 2, 3, 4, 4, 3, 1])
        packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, STRATEGIES[strategy])
        stream = packer.compress(raw[:9000]) + packer.flush(zlib.Z_FULL_FLUSH) + packer.compress(raw[9000:])
        content = png(131, 90, colour_type, stream + packer.flush(), size=size)
        found = read(content, target)
        assert found is not None
        np.testing.assert_array_equal(found, by_pillow(content))


@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4]], ids=["none", "sub", "up", "average", "paeth"])
def test_matches_reach_back_over_rows_that_were_taken(filters: list[int]) -> None:
    """More bytes than a piece and the window have."""
    row = np.random.default_rng(1).integers(0, 256, (1, 3000, 4), dtype=np.uint8)
    content = png(3000, 40, 6, zlib.compress(filtered(np.repeat(row, 40, axis=0), filters)))
    np.testing.assert_array_equal(read(content), by_pillow(content))


def test_bytes_after_each_other_are_copied_from_any_distance() -> None:
    parts = [bytes((7 * place + distance) % 256 for place in range(distance)) * 40 for distance in range(1, 40)]
    raw = bytearray(b"".join(parts)[: 49 * 481])
    raw[::481] = bytes(len(raw[::481]))
    content = png(120, 49, 6, zlib.compress(bytes(raw).ljust(49 * 481, b"\0"), 9))
    np.testing.assert_array_equal(read(content), by_pillow(content))


GREY = BytesIO()
Image.new("L", (9, 9)).save(GREY, "PNG")
RAW = filtered(noise(20, 30, 3), [0])
STREAM = zlib.compress(RAW)
LEFT_TO_PILLOW = {
    "grey": GREY.getvalue(),
    "no pixels": png(30, 20, 2, b""),
    "a colour that is transparent": png(30, 20, 2, STREAM, chunk(b"tRNS", bytes(6))),
    "another header": png(30, 20, 2, STREAM, chunk(b"IHDR", bytes([0, 0, 0, 30, 0, 0, 0, 20, 8, 6, 0, 0, 0]))),
    "a chunk that nobody knows": png(30, 20, 2, STREAM, chunk(b"abCd", b"")),
    "to be turned": png(30, 20, 2, STREAM, chunk(b"tEXt", b"XML:com.adobe.xmp\0<x tiff:Orientation='6'/>")),
    "a text whose name is one of Pillow's: interlace": png(30, 20, 2, STREAM, chunk(b"tEXt", b"interlace\0yes")),
    "a text whose name is one of Pillow's: bbox": png(30, 20, 2, STREAM, chunk(b"tEXt", b"bbox\0abcd")),
    "text behind the pixels": png(30, 20, 2, STREAM)[:-12] + chunk(b"tEXt", b"a\0b") + chunk(b"IEND", b""),
    "no end": png(30, 20, 2, STREAM)[:-12],
    "a filter that there is none of": png(30, 20, 2, zlib.compress(b"\5" + RAW[1:])),
    "a row too few": png(30, 20, 2, zlib.compress(RAW[:-91])),
    "a byte too few": png(30, 20, 2, zlib.compress(RAW[:-1])),
    "a byte too many": png(30, 20, 2, zlib.compress(RAW + b"\0")),
    "rows too many": png(30, 20, 2, zlib.compress(RAW + bytes(10**6))),
    "bytes behind the stream": png(30, 20, 2, STREAM + b"\0"),
    "blocks of nothing": png(30, 20, 2, STREAM[:2] + bytes.fromhex("000000ffff") * 2000 + STREAM[2:]),
    "a wrong sum": png(30, 20, 2, STREAM[:-1] + bytes([STREAM[-1] ^ 1])),
    "a stream cut off": png(30, 20, 2, STREAM[:-40]),
    "no method": png(30, 20, 2, b"\x79" + STREAM[1:]),
    "a dictionary": png(30, 20, 2, b"\x78\xbb" + STREAM[2:]),
    "a distance before the first byte": png(30, 20, 2, b"\x78\x9c\x03\x02\x00" + STREAM[-4:]),
}


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_every_other_file_is_left_to_pillow(name: str) -> None:
    content = LEFT_TO_PILLOW[name]
    assert read(content) is None
    try:
        expected = preprocess(content, SETTINGS)
    except InvalidRequest as error:
        with pytest.raises(InvalidRequest) as caught:
            preprocess(content, SETTINGS, library=library(TARGETS[0]))
        assert str(caught.value) == str(error)
    else:
        found = preprocess(content, SETTINGS, library=library(TARGETS[0]))
        np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("interlaced", ["Adam7", "no"])
def test_an_interlaced_file_is_left_to_pillow(interlaced: str) -> None:
    content = bytearray(png(1, 1, 2, zlib.compress(b"\0abc")))
    content[28] = interlaced == "Adam7"  # of one pixel both have the same rows
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    assert (read(bytes(content)) is None) == (interlaced == "Adam7")


@pytest.mark.parametrize("target", TARGETS)
@examples(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
@example(2400, 28, 364, 28)
@example(1, 1, 200, 300)
@example(3, 3000, 28, 28)
@example(280, 90, 281, 90)
def test_images_are_resized_as_pillow_does_it(target: str, height: int, width: int, rows: int, columns: int) -> None:
    pixels = noise(height, width, 3)
    expected = PillowPicture(Image.fromarray(pixels)).resized((rows, columns))
    resize = PixelLibrary.resized
    for _ in range(2):  # the second time without Pillow
        np.testing.assert_array_equal(resize(library(target), pixels, (rows, columns)), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_either_order_of_the_passes_is_found(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(60, 90, 3)
    image = Image.fromarray(pixels)
    orders = {Passes.ROWS: [(30, 60), (30, 40)], Passes.COLUMNS: [(90, 40), (30, 40)]}
    found: dict[Passes, Pixels] = {}
    for passes, steps in orders.items():
        resized = image
        for step in steps:
            resized = resized.resize(step, Image.Resampling.BICUBIC)
        found[passes] = np.asarray(resized)
    assert not np.array_equal(*found.values()), "the image tells them apart"
    flat = np.full_like(pixels, 7)
    for expected in found.values():
        fresh, asked = PixelLibrary(library_path(target)), [np.full_like(expected, 7), expected, None]
        monkeypatch.setattr(compiled, "resized_by_pillow", lambda *_, answers=asked: answers.pop(0))
        np.testing.assert_array_equal(fresh.resized(flat, (40, 30)), np.full_like(expected, 7))
        for _ in range(2):
            np.testing.assert_array_equal(fresh.resized(pixels, (40, 30)), expected)
        assert asked == [None], "the third image is resized without Pillow"


def library_path(target: str) -> object:
    (found,) = [each for each in compiler.TARGETS if each.name == target]
    return compiler.build(compiler.PIXELS_SOURCE, found)


def test_where_pillow_has_other_pixels_it_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    other, asked = np.zeros((40, 30, 3), np.uint8), []
    monkeypatch.setattr(compiled, "resized_by_pillow", lambda *_: (asked.append(1), other)[1])
    fresh = PixelLibrary(library_path(TARGETS[0]))
    for _ in range(3):
        assert fresh.resized(noise(60, 90, 3), (40, 30)) is other
    assert len(asked) == 3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGBA")])
@pytest.mark.parametrize(("height", "width"), [(30, 40), (200, 120), (56, 84)])
def test_patches_are_the_same(target: str, kind: str, mode: str, height: int, width: int) -> None:
    content = image_file(height, width, mode=mode, kind=kind)
    expected = preprocess(content, SETTINGS)
    for _ in range(2):
        found = preprocess(content, SETTINGS, library=library(target))
        assert found.grid == expected.grid
        np.testing.assert_array_equal(found.values, expected.values)


@examples(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=12), st.booleans(), st.booleans())
def test_of_a_damaged_file_comes_what_pillow_makes_of_it(
    place: int, garbage: bytes, is_cut: bool, has_right_sum: bool
) -> None:
    """`has_right_sum`: the stream's own checksum; those of chunks Pillow does not look at where pixels are."""
    stream = bytearray(STREAM)
    place %= len(stream)
    stream[place : len(stream) if is_cut else place + len(garbage)] = garbage
    if has_right_sum:
        stream[-4:] = STREAM[-4:]
    content = png(30, 20, 2, bytes(stream))
    found = read(content)
    if found is not None:
        np.testing.assert_array_equal(found, by_pillow(content))
