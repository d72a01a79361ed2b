"""How large an image becomes where a request says it: within the artifact's limits, the same at the door and in the
vision model, and a part of every key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.vision.asked_size import LOW_DETAIL_PIXELS, AskedSize
from autoglm_engine.vision.processor import preprocess
from autoglm_engine.vision.resize import can_become, token_grid
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.export.tiny_glm4v import image_file, tiny_tokenizer
from tests.support.vision.settings import vision_settings

SETTINGS = vision_settings()
PUBLISHED = vision_settings(min_pixels=12_544, max_pixels=9_633_792)
LIMITS = st.integers(PUBLISHED.min_pixels, PUBLISHED.max_pixels)
TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{% if part == {'type': 'image'} %}<|image|>{% endif %}"
    "{% endfor %}{% endfor %}"
)


@pytest.fixture
def prompter() -> Iterator[Prompter]:
    made = Prompter(tiny_tokenizer(), ChatTemplate(TEMPLATE, {}), 512, vision=SETTINGS)
    yield made
    made.close()


def asked(*parts: dict[str, Any]) -> bytes:
    return json.dumps([{"role": "user", "content": [{"type": "image", **part} for part in parts]}]).encode()


@given(st.integers(1, 6000), st.integers(1, 6000), LIMITS, LIMITS)
def test_whatever_the_limits_make_of_an_image_it_can_become(height: int, width: int, one: int, other: int) -> None:
    assume(max(height, width) <= 199 * min(height, width))
    limited = dataclasses.replace(PUBLISHED, min_pixels=min(one, other), max_pixels=max(one, other))
    assert can_become(height, width, token_grid(height, width, limited), PUBLISHED)


@pytest.mark.parametrize("grid", [(39, 86), (89, 39), (86, 40), (60, 20), (20, 30), (1, 1), (400, 180), (2, 1)])
def test_what_no_limit_gives_is_told_apart(grid: tuple[int, int]) -> None:
    assert not can_become(2400, 1080, grid, PUBLISHED)
    assert can_become(2400, 1080, (86, 39), PUBLISHED) and can_become(2400, 1080, (84, 37), PUBLISHED)


@pytest.mark.parametrize("limits", [(3136, 20_000), (60_000, 100_352), (3136, 3136)])
def test_the_vision_model_makes_the_pixels_that_such_an_export_would(limits: tuple[int, int]) -> None:
    content = image_file(150, 90)
    limited = dataclasses.replace(SETTINGS, min_pixels=limits[0], max_pixels=limits[1])
    expected = preprocess(content, limited)
    found = preprocess(content, SETTINGS, token_grid(150, 90, limited))
    assert found.grid == expected.grid
    np.testing.assert_array_equal(found.values, expected.values)


def test_detail_low_is_a_number_of_pixels_and_the_rest_the_artifacts_own() -> None:
    low, high, auto = (AskedSize(detail=detail).within(PUBLISHED, "x") for detail in ("low", "high", "auto"))
    assert low.max_pixels == 2 * LOW_DETAIL_PIXELS and high == auto == PUBLISHED
    assert token_grid(2400, 1080, low) == (27, 12)
    assert AskedSize(detail="low").within(SETTINGS, "x") == SETTINGS, "it makes nothing larger"
    assert AskedSize(max_pixels=20_000, detail="low").within(PUBLISHED, "x").max_pixels == 20_000


def test_two_sizes_of_one_file_are_two_images_of_a_prompt(prompter: Prompter) -> None:
    file = image_file(150, 90)
    prompt = prompter.from_messages(asked({}, {"max_pixels": 20_000}, {"detail": "low"}), images=[file] * 3)
    whole, small, low = prompt.images
    assert whole.grid == low.grid == token_grid(150, 90, SETTINGS) and small.num_tokens < whole.num_tokens
    assert (whole.digest, whole.grid) != (small.digest, small.grid)
    assert len(prompt.token_ids) == sum(image.num_tokens for image in prompt.images)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"max_pixels": 100_353}, "images[0]: max_pixels is 100353; allowed is 3136 ... 100352 for this model"),
        ({"min_pixels": 3135}, "images[0]: min_pixels is 3135; allowed is 3136 ... 100352 for this model"),
        ({"min_pixels": 9000, "max_pixels": 8000}, "images[0]: min_pixels is 9000; it must be at most max_pixels"),
        ({"max_pixels": 1e5}, "messages[0].content[0].max_pixels is 100000.0; it must be a whole number"),
        ({"max_pixels": True}, "messages[0].content[0].max_pixels is True; it must be a whole number"),
        ({"detail": "fine"}, "messages[0].content[0].detail is 'fine'; allowed are auto, low, high"),
        ({"url": "http://x"}, "messages[0].content[0] has 'url'; an image has min_pixels, max_pixels and detail"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(prompter: Prompter, part: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompter.from_messages(asked(part), images=[image_file(150, 90)])
    assert sentence in str(caught.value)
