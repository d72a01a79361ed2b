"""What the caller is told where the vision model gave no features."""

from __future__ import annotations

import logging

import pytest
from autoglm_engine.errors import EngineError, InvalidRequest, Unavailable
from autoglm_engine.triton.images.image_intake import vision_failure

FRAME = "Failed to process the request(s) for model 'vision_0_0', message: "


@pytest.mark.parametrize(
    ("sentence", "kind", "said"),
    [
        ("INVALID_ARG: an image cannot be read", InvalidRequest, "an image cannot be read"),
        (FRAME + "UNAVAILABLE: a reload is due", Unavailable, "a reload is due"),
        ("INTERNAL: the vision model failed: MemoryError", EngineError, "the vision model failed: MemoryError"),
    ],
)
def test_the_models_own_sentence_is_passed_on(sentence: str, kind: type[EngineError], said: str) -> None:
    failure = vision_failure(sentence)
    assert type(failure) is kind and str(failure) == said


@pytest.mark.parametrize(
    "sentence",
    [
        FRAME + "Stub process 'vision_0_0' is not healthy.",
        "Failed to increase the shared memory pool size for key 'autoglm-1' to 22020096 bytes. Error: Invalid argument",
        "Request for unknown model: 'vision' is not found",
    ],
)
def test_what_triton_says_is_for_the_log(sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        failure = vision_failure(sentence)
    assert type(failure) is Unavailable and str(failure) == (
        "the vision model cannot be asked just now; try again later"
    )
    assert sentence in caplog.text
