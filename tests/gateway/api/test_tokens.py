"""`/tokenize` and `/detokenize`: what the server is asked, what is answered, and who may ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from autoglm_client import Image
from autoglm_client.exceptions import QueueFullError
from autoglm_gateway.settings.model import GatewaySettings
from tritonclient.grpc import service_pb2 as pb

from tests.support.client.client_fakes import FakeTransport, inputs_of
from tests.support.gateway.gateway_fakes import HELLO, bearer, made_keys, opened

SCREEN = Image(np.zeros((2, 3, 4), np.uint8))
PICTURE = {"type": "image_url", "image_url": {"url": SCREEN.data_url}}
TOOL = {"type": "function", "function": {"name": "tap"}}


class TokenizerTransport(FakeTransport):
    """Fails where it is asked for tokens, if there is an error."""

    def __init__(self, max_images: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.limits["max_images"] = max_images
        self._error = error

    async def stream(self, request: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferResponse]:
        async for answer in super().stream(request):
            if self._error and request.model_name.endswith("tokenizer"):
                raise self._error
            yield answer


def asked_of(transport: FakeTransport) -> dict[str, Any]:
    """What the one request says: texts, those of JSON read."""
    (request,) = transport.requests
    assert request.model_name == "tokenizer"
    texts = {name: raw[4:] for name, raw in inputs_of(request).items()}
    return {name: raw if name in ("images", "text_input", "tenant") else json.loads(raw) for name, raw in texts.items()}


async def test_a_prompt_is_asked_of_the_tokenizer_and_told_as_vllm_does() -> None:
    transport = TokenizerTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        body = {"model": "autoglm", "prompt": "hello", "add_special_tokens": False, "return_token_strs": True}
        answer = await gateway.http.post("/tokenize", json=body)
    expected = {"count": 3, "max_model_len": 2048, "tokens": [5, 6, 7], "token_strs": ["a", "b", "c"]}
    assert (answer.status_code, answer.json()) == (200, expected)
    control = {"tokenize": {"return_token_strs": True, "add_special_tokens": False}}
    assert asked_of(transport) == {"text_input": b"hello", "control": control}


async def test_conversations_go_with_their_images_and_tools_for_the_tenant() -> None:
    transport = TokenizerTransport(max_images=2)
    keys, (alice,) = made_keys("alice")
    async with opened(GatewaySettings(keys=keys), transport) as gateway:
        messages = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}]
        body = {"messages": messages, "tools": [TOOL], "mm_processor_kwargs": {"max_pixels": 9000}}
        assert (await gateway.http.post("/tokenize", json=body)).status_code == 401
        answer = await gateway.http.post("/tokenize", json=body, headers=bearer(alice))
    assert answer.status_code == 200, answer.text
    asked = asked_of(transport)
    assert asked["tenant"] == b"alice" and asked["images"] == SCREEN.file and asked["tools"] == [TOOL]
    assert asked["messages"][0]["content"][0] == {"type": "image", "max_pixels": 9000}
    assert asked["control"] == {"tokenize": {"return_token_strs": False}}


async def test_tools_that_cannot_be_called_are_not_told_of() -> None:
    transport = TokenizerTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        body = {"messages": HELLO, "tools": [TOOL], "tool_choice": "none", "add_generation_prompt": False}
        assert (await gateway.http.post("/tokenize", json=body)).status_code == 200
    asked = asked_of(transport)
    assert "tools" not in asked and asked["control"]["tokenize"]["add_generation_prompt"] is False


async def test_tokens_become_text() -> None:
    transport = TokenizerTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        answer = await gateway.http.post("/detokenize", json={"tokens": [5, 6, 7]})
    assert (answer.status_code, answer.json()) == (200, {"prompt": "abc"})
    assert asked_of(transport) == {"control": {"detokenize": [5, 6, 7]}}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/tokenize", {}, 400, "prompt or messages is needed, and only one of them; neither is there"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, 400, "only one of them; both are there"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, 400, "tools goes with messages, not with prompt"),
        ("/tokenize", {"prompt": "a", "fast": True}, 400, "fast is not supported by this server"),
        (
            "/tokenize",
            {"prompt": "a", "continue_final_message": True},
            400,
            "continue_final_message goes with messages",
        ),
        ("/tokenize", {"messages": [{"role": "user", "content": [PICTURE]}]}, 400, "no vision encoder, so it takes no"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "there is no model 'other'"),
        ("/detokenize", {"tokens": []}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "text": "a"}, 400, "text is not supported by this server"),
    ],
)
async def test_what_cannot_be_asked_is_one_sentence(path: str, body: dict[str, Any], status: int, words: str) -> None:
    transport = TokenizerTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        answer = await gateway.http.post(path, json=body)
    assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text
    assert not transport.requests


async def test_of_several_models_one_is_named() -> None:
    transport = TokenizerTransport()
    settings = GatewaySettings(models={"phone": "phone", "fast": "chat"}, aliases={})
    async with opened(settings, transport) as gateway:
        unnamed = await gateway.http.post("/tokenize", json={"prompt": "a"})
        named = await gateway.http.post("/detokenize", json={"model": "fast", "tokens": [1]})
    assert unnamed.status_code == 400 and "there are several: phone, fast" in unnamed.json()["error"]["message"]
    assert named.status_code == 200 and transport.requests[0].model_name == "chat-tokenizer"


async def test_they_are_bounded_and_counted_as_other_endpoints() -> None:
    settings = GatewaySettings(max_body_bytes=1000, requests_per_minute=12)
    transport = TokenizerTransport(error=QueueFullError("the queue is full"))
    async with opened(settings, transport) as gateway:
        large = await gateway.http.post("/tokenize", json={"prompt": "a" * 1000})
        full = await gateway.http.post("/tokenize", json={"prompt": "a"})
        often = await gateway.http.post("/detokenize", json={"tokens": [1]})
        counted = (await gateway.http.get("/metrics")).text
    assert (large.status_code, full.status_code, often.status_code) == (413, 429, 429)
    assert often.json()["error"]["code"] == "rate_limit_exceeded"
    for status in (413, 429):
        assert (
            f'requests_total{{endpoint="/tokenize",model="{"autoglm" if status == 429 else ""}",status="{status}"}} 1'
            in counted
        )
    assert 'upstream_errors_total{kind="queue_full",model="autoglm"} 1' in counted
