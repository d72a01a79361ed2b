"""The gateway as the real openai package sees it, in front of a server that lives in the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from autoglm_client import AsyncClient
from autoglm_client.exceptions import AutoGLMError, CannotConnectError, InvalidRequestError, QueueFullError, ServerError
from autoglm_gateway.app import create_app
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of

HELLO = [{"role": "user", "content": "hello"}]
Opened = Callable[..., object]


@asynccontextmanager
async def opened(transport: FakeTransport, **settings: object) -> AsyncIterator[openai.AsyncOpenAI]:
    app = create_app(
        GatewaySettings(**settings), lambda urls, model: AsyncClient(urls, model=model, transport=lambda _: transport)
    )  # type: ignore[arg-type, return-value]
    inner = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=inner, base_url="http://gateway") as http,
        openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="none", http_client=http, max_retries=0) as client,
    ):
        yield client


async def test_a_chat_is_answered_whole_and_as_a_stream_with_the_same_text() -> None:
    async with opened(FakeTransport()) as client:
        answer = await client.chat.completions.create(model="autoglm", messages=HELLO)  # type: ignore[arg-type]
        stream = await client.chat.completions.create(
            model="autoglm-phone-9b",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "one two three",
        "length",
    )
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in parts) == "one two three"
    assert parts[0].delta.role == "assistant" and [part.finish_reason for part in parts] == [None] * 4 + ["length"]
    assert chunks[-1].usage == answer.usage and answer.usage is not None and answer.usage.completion_tokens == 3
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].model == "autoglm-phone-9b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (InvalidRequestError("top_k is 9: it must be 0 ... 5"), openai.BadRequestError, 400),
        (QueueFullError("the queue is full"), openai.RateLimitError, 429),
        (CannotConnectError("no server there"), openai.InternalServerError, 503),
        (ServerError("broken"), openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_before_the_first_token_are_typed_errors(
    error: AutoGLMError, raised: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    async with opened(FakeTransport(Script(errors=[error] * 9))) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(model="autoglm", messages=HELLO, stream=stream)  # type: ignore[call-overload]
    assert caught.value.status_code == status and str(error) in caught.value.message
    assert ("retry-after" in caught.value.response.headers) == (status in (429, 503))


async def test_a_failure_later_is_an_event_of_the_stream() -> None:
    async with opened(FakeTransport(Script(fail_after=(2, ServerError("broken"))))) as client:
        stream = await client.chat.completions.create(model="autoglm", messages=HELLO, stream=True)  # type: ignore[arg-type]
        with pytest.raises(openai.APIError, match="broken"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "gpt-4o"}, "model"),
        ({"temperature": 3.0}, "temperature"),
        ({"messages": []}, "messages"),
        ({"extra_body": {"audio": {}}}, "audio"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
async def test_what_is_wrong_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    transport = FakeTransport()
    async with opened(transport) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**{"model": "autoglm", "messages": HELLO, **changes})  # type: ignore[call-overload]
    assert caught.value.param == field and field.split("[")[0] in caught.value.message
    assert caught.value.status_code == (404 if field == "model" else 400) and not transport.requests


async def test_vllms_ways_to_say_things_are_passed_on() -> None:
    """As its own server takes them: no top_k is -1, and bad_words are texts."""
    transport = FakeTransport()
    async with opened(transport) as client:
        said = {"top_k": -1, "bad_words": ["ugly", "very bad"]}
        await client.completions.create(model="autoglm", prompt="once", extra_body=said)
    sent = inputs_of(transport.requests[0])
    assert int.from_bytes(sent["top_k"], "little", signed=True) == -1
    assert sent["bad_words"] == b"\x04\0\0\0ugly\x08\0\0\0very bad"


async def test_choices_draw_with_seeds_of_their_own_and_share_the_prompt() -> None:
    transport = FakeTransport()
    async with opened(transport) as client:
        answer = await client.completions.create(model="autoglm", prompt="once", n=3, seed=7, temperature=0.5)
        stream = await client.completions.create(model="autoglm", prompt="once", n=2, stream=True)
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert [choice.text for choice in answer.choices] == ["one two three"] * 3 and texts == ["one two three"] * 2
    assert answer.usage is not None and answer.usage.completion_tokens == 9
