"""Chats with images: which are taken, how they reach the server, within which bounds, and what is shown of them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from autoglm_client import Image
from autoglm_gateway.settings.model import MIB, GatewaySettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.client.client_fakes import FakeTransport, inputs_of
from tests.support.gateway.gateway_fakes import opened

SCREEN = Image(np.zeros((2, 3, 4), np.uint8))
OTHER = Image(np.ones((2, 3, 3), np.uint8))
PADDED = Image(SCREEN.file + bytes(3 * MIB))  # what stands behind the end of a PNG is nothing
SECRET = "c2VjcmV0" * 200


def picture(image: Image = SCREEN, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image.data_url, **more}}


def said(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "autoglm", "messages": [{"role": "user", "content": list(parts)}], **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@asynccontextmanager
async def seeing(
    max_images: int = 10, settings: GatewaySettings | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeTransport]]:
    transport = FakeTransport()
    transport.limits["max_images"] = max_images
    async with opened(settings or GatewaySettings(), transport) as gateway:
        yield gateway.http, transport


async def refused(body: object, status: int = 400, settings: GatewaySettings | None = None) -> dict[str, Any]:
    async with seeing(settings=settings) as (http, transport):
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == status and not transport.requests, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert SECRET[:32] not in answer.text and len(answer.text) < 600
    return error


@pytest.mark.parametrize("streamed", [False, True])
async def test_images_reach_the_server_as_files_in_their_order(streamed: bool) -> None:
    async with seeing() as (http, transport):
        body = said(picture(), text("What is "), text("new?"), picture(OTHER, detail="high"), stream=streamed)
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    (asked,) = map(inputs_of, transport.requests)
    (turn,) = json.loads(asked["messages"][4:])
    marks = [{"type": "image"}, text("What is "), text("new?"), {"type": "image"}]
    assert turn["content"] == marks
    first, second = asked["images"].index(SCREEN.file), asked["images"].index(OTHER.file)
    assert first == 4 and second == 8 + len(SCREEN.file) and len(asked["images"]) == second + len(OTHER.file)


async def test_how_large_images_become_is_asked_as_vllm_and_openai_are() -> None:
    async with seeing() as (http, transport):
        for asked in ({"max_pixels": 5_000_000}, {"size": {"shortest_edge": 99, "longest_edge": 5_000_000}}, {}):
            body = said(picture(), picture(OTHER, detail="low"), mm_processor_kwargs=asked)
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    marks = [json.loads(inputs_of(request)["messages"][4:])[0]["content"] for request in transport.requests]
    limits: list[dict[str, int]] = [{"max_pixels": 5_000_000}, {"min_pixels": 99, "max_pixels": 5_000_000}, {}]
    assert marks == [[{"type": "image", **one}, {"type": "image", **one, "detail": "low"}] for one in limits]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_pixels": 0}, "max_pixels"),
        ({"fps": 2}, "fps"),
        ({"max_pixels": 9, "size": {"longest_edge": 8}}, "max_pixels 9 and in size 8: they are the same limit"),
    ],
)
async def test_other_settings_of_the_processor_are_refused(asked: dict[str, Any], words: str) -> None:
    error = await refused(said(picture(), mm_processor_kwargs=asked))
    assert words in error["message"] and error["param"].startswith("mm_processor_kwargs")


async def test_parts_without_images_are_one_text_as_before() -> None:
    async with seeing() as (http, transport):
        await http.post("/v1/chat/completions", json=said(text("a"), text("b")))
    asked = inputs_of(transport.requests[0])
    assert json.loads(asked["messages"][4:])[0]["content"] == "ab" and "images" not in asked


async def test_each_choice_sees_the_images() -> None:
    async with seeing() as (http, transport):
        assert (await http.post("/v1/chat/completions", json=said(picture(), n=2))).status_code == 200
    assert [SCREEN.file in inputs_of(request)["images"] for request in transport.requests] == [True, True]


async def test_a_model_without_a_vision_encoder_takes_none() -> None:
    async with seeing(0) as (http, transport):
        answer = await http.post("/v1/chat/completions", json=said(text("?"), picture()))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "messages[0].content[1]" and not transport.requests
    assert "this model has no vision encoder, so it takes no image_url" in error["message"]


async def test_more_images_than_the_model_takes_are_refused() -> None:
    error = await refused(said(*[picture()] * 11))
    assert error["message"] == "the request has 11 images; this model takes 10 at most"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.org/a.png", "no url is fetched"),
        ("http://example.org/a.png", "no url is fetched"),
        ("file:///etc/passwd", "no url is fetched"),
        (f"data:image/gif;base64,{SECRET}", "no url is fetched"),
        (f"data:image/svg+xml;base64,{SECRET}", "no url is fetched"),
        (SECRET, "no url is fetched"),
        ("", "no url is fetched"),
        (f"data:image/png;base64,{SECRET}", "no PNG, JPEG or WEBP file"),
        (f"data:image/png;base64,{SECRET}*", "base64 is broken"),
        (f"data:image/png;base64,{SECRET}==", "base64 is broken"),
        ("data:image/png;base64,", "0 bytes"),
        ({"a": f"data:image/png;base64,{SECRET}"}, "valid string"),
    ],
)
async def test_what_is_no_image_is_refused_and_not_shown(url: object, words: str) -> None:
    error = await refused(said({"type": "image_url", "image_url": {"url": url}}))
    assert words in error["message"] and error["param"] == "messages[0].content[0].image_url.url"


async def test_a_refused_field_beside_an_image_shows_nothing_of_it() -> None:
    body = said(picture())
    body["messages"][0]["content"][0]["image_url"] = f"data:image/png;base64,{SECRET}"
    await refused(body)
    await refused({**said(), "messages": [{"role": "user", "content": {"url": f"data:image/png;base64,{SECRET}"}}]})


@given(st.text(st.sampled_from("ABx9+/==-\n"), max_size=9))
def test_broken_base64_never_becomes_an_image(data: str) -> None:
    from autoglm_gateway.api.schema import ChatMessage
    from autoglm_gateway.api.translation import ImageRules, conversation
    from autoglm_gateway.errors import ApiError

    url = {"url": "data:image/png;base64," + data}
    message = ChatMessage.model_validate({"role": "user", "content": [{"type": "image_url", "image_url": url}]})
    with pytest.raises(ApiError) as caught:
        conversation([message], ImageRules(1))
    assert caught.value.param == "messages[0].content[0].image_url.url"


async def test_images_have_room_of_their_own_in_a_body() -> None:
    async with seeing() as (http, transport):
        answer = await http.post("/v1/chat/completions", json=said(*[picture(PADDED)] * 7, text("?")))
    assert answer.status_code == 200
    assert len(inputs_of(transport.requests[0])["images"]) > 21 * MIB


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (said(text("x" * 5 * MIB), picture()), "the body without its images is larger than 4,194,304 bytes"),
        (said(*[picture(PADDED)] * 10), "the body is larger than 37,748,736 bytes"),
    ],
)
async def test_bodies_are_bounded_with_their_images_and_without(body: dict[str, Any], most: str) -> None:
    error = await refused(body, 413)
    assert most in error["message"] and error["code"] == "body_too_large"


async def test_bodies_of_a_model_that_reads_text_only_stay_small() -> None:
    async with seeing(0) as (http, _):
        answer = await http.post("/v1/chat/completions", json=said(*[picture(PADDED)] * 2))
    assert answer.status_code == 413 and "larger than 4,194,304 bytes" in answer.text


async def test_completions_have_no_room_for_images() -> None:
    async with seeing() as (http, _):
        answer = await http.post("/v1/completions", json={"model": "autoglm", "prompt": "x" * 5 * MIB})
    assert answer.status_code == 413 and "larger than 4,194,304 bytes" in answer.text


async def test_images_take_part_in_what_all_bodies_may_hold() -> None:
    settings = GatewaySettings(max_held_bytes=5 * MIB)
    error = await refused(said(*[picture(PADDED)] * 2), 413, settings)
    assert "larger than 5,242,880 bytes" in error["message"]


async def test_a_log_with_prompts_says_what_the_images_were(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with seeing(settings=GatewaySettings(access_log=str(log), log_prompts=True)) as (http, _):
        await http.post("/v1/chat/completions", json=said(picture(), text("What is on it?")))
    (line,) = map(json.loads, log.read_text().splitlines())
    shown = {"type": "image", "media_type": "image/png", "num_bytes": len(SCREEN.file)}
    assert line["prompts"] == [[{"role": "user", "content": [shown, "What is on it?"]}]]
    assert base64.b64encode(SCREEN.file).decode()[:40] not in log.read_text()
