"""The size an image is encoded in, against transformers' own function."""

from __future__ import annotations

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.manifest import VisionSettings
from autoglm_engine.vision.resize import resized, token_grid
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.vision.settings import QWEN3_VL, vision_settings

PUBLISHED = vision_settings(min_pixels=12_544, max_pixels=9_633_792)
SIDES = st.integers(1, 6000) | st.integers(0, 200).flatmap(
    lambda n: st.sampled_from([28 * n + d for d in (1, 13, 14, 15, 27)])
)


@given(SIDES, SIDES, st.sampled_from([(12_544, 9_633_792), (12_544, 5_000_000), (3136, 100_352), (1, 2**40)]))
@example(27, 27 * 200, (12_544, 9_633_792))
@example(1, 200, (12_544, 9_633_792))
@example(1, 201, (12_544, 9_633_792))
@example(28, 5600, (3136, 6272))
def test_every_size_becomes_what_transformers_makes_of_it(height: int, width: int, pixels: tuple[int, int]) -> None:
    from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

    settings = vision_settings(min_pixels=pixels[0], max_pixels=pixels[1])
    try:
        expected = smart_resize(2, height, width, min_pixels=pixels[0], max_pixels=pixels[1])
    except ValueError:
        with pytest.raises(InvalidRequest, match=f"an image is {width} x {height} pixels"):
            resized(height, width, settings)
        return
    assert resized(height, width, settings) == expected
    assert token_grid(height, width, settings) == (expected[0] // 28, expected[1] // 28)


@given(SIDES, SIDES, st.sampled_from([(65_536, 16_777_216), (3136, 100_352), (2048, 65_536), (1, 2**40)]))
@example(1, 200, (65_536, 16_777_216))
@example(1, 201, (65_536, 16_777_216))
@example(32, 6400, (2048, 65_536))
@example(10, 2000, (4096, 65_536))
def test_every_size_becomes_what_qwen_makes_of_it(height: int, width: int, pixels: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    settings = vision_settings(**{**QWEN3_VL, "min_pixels": pixels[0], "max_pixels": pixels[1]})
    try:
        expected = smart_resize(height, width, 32, min_pixels=pixels[0], max_pixels=pixels[1])
    except ValueError:
        with pytest.raises(InvalidRequest, match=f"an image is {width} x {height} pixels"):
            resized(height, width, settings)
        return
    assert resized(height, width, settings) == expected
    assert token_grid(height, width, settings) == (expected[0] // 32, expected[1] // 32)


@pytest.mark.parametrize(
    ("settings", "height", "width", "grid"),
    [
        (PUBLISHED, 2400, 1080, (86, 39)),
        (PUBLISHED, 1920, 1080, (69, 39)),
        (PUBLISHED, 3200, 1440, (114, 51)),
        (vision_settings(min_pixels=12_544, max_pixels=5_000_000), 2400, 1080, (84, 37)),
    ],
)
def test_phones_screens_have_these_tokens(
    settings: VisionSettings, height: int, width: int, grid: tuple[int, int]
) -> None:
    assert token_grid(height, width, settings) == grid


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3), st.integers(1, 4))
def test_other_patches_give_multiples_of_theirs(height: int, width: int, merge: int, frames: int) -> None:
    settings = vision_settings(
        patch_size=5, merge_size=merge, temporal_patch_size=frames, frames=frames, min_pixels=1, max_pixels=4000
    )
    new_height, new_width = resized(height, width, settings)
    assert new_height % (5 * merge) == new_width % (5 * merge) == 0
    assert min(new_height, new_width) > 0
