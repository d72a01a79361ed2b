"""The manifest's section of a model that sees; one without it is what it always was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import MANIFEST_NAME, Manifest

from tests.support.vision.settings import BLIND, SETTINGS, vision_settings

SEEING = dataclasses.replace(BLIND, vision=vision_settings())


def test_a_manifest_without_images_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    BLIND.save(tmp_path)
    content = (tmp_path / MANIFEST_NAME).read_bytes()
    assert b'vision"' not in content
    assert hashlib.sha256(content).hexdigest() == "97102fc134ebb0280e2adfd971c59f54e1169a4164ca061a1b3270f4fae01b33"
    assert BLIND.digest == "300fc05643bc92d016055e8f057a7f343c87e2c6f34f11ba81d758c778901ef4"
    assert Manifest.load(tmp_path) == BLIND


def test_what_it_says_of_images_is_read_back(tmp_path: Path) -> None:
    SEEING.save(tmp_path)
    assert Manifest.load(tmp_path) == SEEING


@pytest.mark.parametrize("name", ["max_pixels", "image_token_id", "image_mean"])
def test_answers_depend_on_it(name: str) -> None:
    value = (0.1, 0.2, 0.3) if name == "image_mean" else 1
    changed = dataclasses.replace(SEEING, vision=vision_settings(**{name: value}))
    assert len({BLIND.digest, SEEING.digest, changed.digest}) == 3


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image_token_id": 288}, "vision.image_token_id 288"),
    ({"begin_image_token_id": -1}, "vision.begin_image_token_id -1"),
    ({"patch_size": 0}, "vision.patch_size 0"),
    ({"merge_size": True}, "vision.merge_size true"),
    ({"max_pixels": 1.5}, "vision.max_pixels 1.5"),
    ({"min_pixels": 100_353}, "at most vision.max_pixels"),
    ({"image_std": [0.1, 0.2, 0]}, "vision.image_std"),
    ({"image_mean": [0.1, 0.2]}, "a list of 3, a number each"),
    ({"mrope_sections": [1, 2, 3.5]}, "vision.mrope_sections"),
    ({"rope_theta": -1}, "vision.rope_theta -1"),
    ({"model": "other.onnx"}, 'does not list "other.onnx"'),
    ({"hidden_size": None}, "vision.hidden_size null"),
    ({"frames": 0}, "vision.frames 0"),
    ({"grows_small": 1}, "vision.grows_small 1; it must be true or false"),
    ({"interpolation": "nearest"}, "one of bicubic, bilinear"),
    ({"eyes": 2}, "unknown keys: vision.eyes"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_no_model_says_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, {**SETTINGS, **changes})


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_may_be_missing(tmp_path: Path, name: str) -> None:
    assert f"lacks vision.{name}" in refused(tmp_path, {key: value for key, value in SETTINGS.items() if key != name})


def test_it_must_be_an_object(tmp_path: Path) -> None:
    assert "has vision [3]; it must be an object" in refused(tmp_path, [3])


def refused(folder: Path, vision: Any) -> str:
    SEEING.save(folder)
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "vision": vision}))
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(folder)
    return str(caught.value)
