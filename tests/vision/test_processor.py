"""Pixels of image files, against transformers' processor with Pillow: every value the same."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.vision import limits
from autoglm_engine.vision.digest import DIGEST_BYTES, image_digest
from autoglm_engine.vision.processor import preprocess
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from tests.support.export.seeing_models import SEEING
from tests.support.export.tiny_glm4v import image_file, reference_pixels
from tests.support.vision.settings import vision_settings

SETTINGS = vision_settings()


def assert_equal_to_transformers(content: bytes, settings: VisionSettings = SETTINGS, **changes: Any) -> None:
    expected, grid = reference_pixels([content], changes)
    found = preprocess(content, settings)
    assert (1, *found.grid) == tuple(grid[0].tolist())
    frames = expected.numpy().reshape(len(expected), 3, settings.temporal_patch_size, -1)
    for frame in range(settings.temporal_patch_size):
        np.testing.assert_array_equal(found.values, frames[:, :, frame].reshape(len(expected), -1))


@examples(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
@example(1, 1, 0)
@example(1, 200, 0)
@example(28, 28, 0)
@example(29, 55, 0)
@example(1400, 7, 0)
@example(260, 260, 0)
def test_pixels_are_those_of_transformers(height: int, width: int, seed: int) -> None:
    if max(height, width) <= 200 * min(height, width):
        assert_equal_to_transformers(image_file(height, width, seed=seed))


@examples(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
@example(1, 1, 0)
@example(1, 200, 0)
@example(32, 32, 0)
@example(33, 47, 0)
@example(1400, 7, 0)
@example(257, 255, 0)
def test_pixels_are_those_of_transformers_for_qwen3_vl_too(height: int, width: int, seed: int) -> None:
    family = SEEING["qwen3_vl"]
    if max(height, width) <= 200 * min(height, width):
        assert_equal_to_transformers(image_file(height, width, seed=seed), family.settings, **family.preprocessor)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_png_is_read(mode: str) -> None:
    assert_equal_to_transformers(pixels_file(mode))


def pixels_file(mode: str) -> bytes:
    rng, stream = np.random.default_rng(3), BytesIO()
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (60, 90), dtype=np.uint16))
    elif mode in ("LA", "RGBA"):
        image = Image.fromarray(rng.integers(0, 256, (60, 90, 4), dtype=np.uint8)).convert(mode)
    else:
        image = Image.open(BytesIO(image_file(60, 90))).convert(mode)
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_colour_that_is_called_transparent_is_as_in_transformers(mode: str) -> None:
    stream, image = BytesIO(), Image.open(BytesIO(image_file(60, 90))).convert(mode)
    image.save(stream, "PNG", transparency=image.getpixel((0, 0)))
    assert_equal_to_transformers(stream.getvalue())


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA")]
)
def test_other_formats_are_read(kind: str, mode: str) -> None:
    assert_equal_to_transformers(image_file(70, 100, mode=mode, kind=kind))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    stream, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.open(BytesIO(image_file(60, 150))).save(stream, kind, exif=exif)
    content = stream.getvalue()
    assert_equal_to_transformers(content)
    rows, columns = preprocess(content, SETTINGS).grid
    assert (rows > columns) == (orientation >= 5)


def test_other_settings_are_obeyed() -> None:
    changed = vision_settings(
        patch_size=8, merge_size=3, temporal_patch_size=1, frames=1, min_pixels=576, max_pixels=20_000
    )
    changed = dataclasses.replace(changed, image_mean=(0.5, 0.0, 0.25), image_std=(0.5, 1.0, 0.125))
    assert_equal_to_transformers(
        image_file(100, 130),
        changed,
        patch_size=8,
        merge_size=3,
        temporal_patch_size=1,
        size={"shortest_edge": 576, "longest_edge": 20_000},
        image_mean=[0.5, 0.0, 0.25],
        image_std=[0.5, 1.0, 0.125],
    )


def refused(content: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        preprocess(content, SETTINGS)
    return str(caught.value)


def test_what_is_no_image_is_refused() -> None:
    stream = BytesIO()
    Image.new("RGB", (30, 30)).save(stream, "BMP")
    for content in (b"", b"no image", stream.getvalue(), b"\x89PNG\r\n\x1a\n"):
        assert "PNG, JPEG, WEBP" in refused(content) or "cannot be read" in refused(content)
    assert "PNG, JPEG, WEBP" in refused(stream.getvalue())


@examples(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(0, 3000), st.binary(max_size=30))
def test_damaged_files_are_refused_or_read(kind: str, place: int, garbage: bytes) -> None:
    content = image_file(40, 60, kind=kind)
    place %= len(content)
    for damaged in (content[:place], content[:place] + garbage + content[place + len(garbage) :]):
        try:
            preprocess(damaged, SETTINGS)
        except InvalidRequest as error:
            assert "an image" in str(error)


def test_too_large_a_file_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    assert str(limits.MAX_IMAGE_BYTES) in refused(b"\0" * (limits.MAX_IMAGE_BYTES + 1))


@pytest.mark.parametrize(("width", "height"), [(33_001, 1000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "pixels" in refused(content)


def test_an_image_of_a_shape_that_no_model_knows_is_refused() -> None:
    assert "an image is 300 x 1 pixels; its longer side may be at most 200 times" in refused(image_file(1, 300))


def test_memory_stays_near_what_the_image_has() -> None:
    """Patches are cut as bytes, and become numbers once."""
    import tracemalloc

    content = image_file(1120, 840)
    big = vision_settings(max_pixels=9_633_792)
    preprocess(content, big)
    tracemalloc.start()
    found = preprocess(content, big)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.7 * found.values.nbytes


def test_digests_tell_files_and_preprocessing_apart() -> None:
    one = image_digest(b"file", SETTINGS)
    assert len(one) == DIGEST_BYTES and one == image_digest(b"file", vision_settings())
    others = [vision_settings(**{name: value}) for name, value in CHANGES.items()]
    digests = {one, image_digest(b"fil", SETTINGS), *(image_digest(b"file", other) for other in others)}
    assert len(digests) == 2 + len(CHANGES)
    assert image_digest(b"file", vision_settings(max_images=2, model="other.onnx")) == one


CHANGES: dict[str, Any] = {
    "patch_size": 16,
    "merge_size": 1,
    "temporal_patch_size": 1,
    "min_pixels": 3137,
    "max_pixels": 100_351,
    "frames": 1,
    "grows_small": False,
    "image_mean": (0.4, 0.4578275, 0.40821073),
    "image_std": (0.2, 0.26130258, 0.27577711),
}
