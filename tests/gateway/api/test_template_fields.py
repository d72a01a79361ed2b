"""What a request tells the chat template, as the real openai package sends it: `chat_template_kwargs` and where the
prompt ends."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport, inputs_of
from tests.support.gateway.gateway_fakes import HELLO, opened

KWARGS = {"enable_thinking": False, "budget": 512, "parts": ["a", None]}
BEGUN = [*HELLO, {"role": "assistant", "content": "Hello, "}]


def told(transport: FakeTransport) -> dict[str, Any]:
    """Of the one request, as its tensors have it."""
    inputs = inputs_of(transport.requests[-1])
    kwargs = inputs.get("chat_template_kwargs")
    flags = {
        name: bool(inputs[name][0]) for name in ("add_generation_prompt", "continue_final_message") if name in inputs
    }
    return flags if kwargs is None else {**flags, "kwargs": json.loads(kwargs[4:])}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"chat_template_kwargs": KWARGS}, {"kwargs": KWARGS}),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
        ({"continue_final_message": False}, {}),
        (
            {"chat_template_kwargs": {"a": 1}, "reasoning_effort": "high"},
            {"kwargs": {"a": 1, "reasoning_effort": "high"}},
        ),
        ({"reasoning_effort": "none"}, {"kwargs": {"reasoning_effort": "none"}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_server_is_told(body: dict[str, Any], expected: dict[str, Any], stream: bool) -> None:
    transport = FakeTransport()
    async with opened(GatewaySettings(), transport) as gateway:
        client = gateway.openai("x")
        answer = await client.chat.completions.create(
            model="autoglm",
            messages=BEGUN,
            stream=stream,
            extra_body=body,  # type: ignore[call-overload]
        )
        if stream:
            assert [chunk async for chunk in answer]
    assert told(transport) == expected


async def test_questions_about_tokens_are_told_the_same() -> None:
    transport = FakeTransport()
    body = {
        "messages": BEGUN,
        "chat_template_kwargs": KWARGS,
        "continue_final_message": True,
        "reasoning_effort": "low",
    }
    async with opened(GatewaySettings(), transport) as gateway:
        assert (await gateway.http.post("/tokenize", json=body)).status_code == 200
    assert told(transport) == {"kwargs": {**KWARGS, "reasoning_effort": "low"}}
    control = json.loads(inputs_of(transport.requests[0])["control"][4:])
    assert control["tokenize"]["continue_final_message"] is True


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "dictionary"),
        ({"chat_template_kwargs": dict.fromkeys(map(str, range(65)), 1)}, "chat_template_kwargs", "at most 64"),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"},
            "reasoning_effort",
            "set one",
        ),
        ({"continue_final_message": 1}, "continue_final_message", "boolean"),
        ({"reasoning_effort": "utmost"}, "reasoning_effort", "'utmost'"),
    ],
)
async def test_other_values_are_refused_by_the_fields_name(body: dict[str, Any], param: str, words: str) -> None:
    async with opened(GatewaySettings()) as gateway:
        with pytest.raises(openai.BadRequestError) as refused:
            await gateway.openai("x").chat.completions.create(model="autoglm", messages=BEGUN, extra_body=body)  # type: ignore[arg-type]
    assert refused.value.param == param and words in str(refused.value)


async def test_texts_have_no_template() -> None:
    async with opened(GatewaySettings()) as gateway:
        with pytest.raises(openai.BadRequestError, match="chat_template_kwargs is not supported"):
            await gateway.openai("x").completions.create(
                model="autoglm", prompt="a", extra_body={"chat_template_kwargs": KWARGS}
            )
