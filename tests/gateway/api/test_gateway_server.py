"""The gateway in front of the real server, as OpenAI's package, LangChain and curl see it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client
from autoglm_gateway.settings.model import GatewaySettings
from openai.types.chat import ChatCompletionMessageParam

from tests.support.gateway.gateway_server import GatewayThread

pytestmark = pytest.mark.server

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours."}]
GREEDY = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def gateway(server: LocalServer) -> Iterator[GatewayThread]:
    with GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: LocalServer) -> str:
    """What the client is told without a gateway."""
    with Client(server.grpc_url) as client:
        return client.chat(ASKED, temperature=0.0, max_tokens=24).text  # type: ignore[arg-type]


def test_the_openai_package_reads_the_same_answer_whole_and_streamed(gateway: GatewayThread, expected: str) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model="autoglm", messages=ASKED, temperature=0.0, max_tokens=24)
        stream = client.chat.completions.create(
            model="autoglm", messages=ASKED, temperature=0.0, max_tokens=24, stream=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        models = [model.id for model in client.models.list()]
    assert whole.choices[0].message.content == streamed == expected
    assert whole.usage is not None and whole.usage.completion_tokens <= 24
    assert models == ["autoglm", "autoglm-phone-9b"]


async def test_many_asynchronous_streams_at_once_are_each_whole(gateway: GatewayThread, expected: str) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:

        async def ask() -> str:
            stream = await client.chat.completions.create(
                model="autoglm", messages=ASKED, temperature=0.0, max_tokens=24, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        answers = await asyncio.gather(*(ask() for _ in range(16)))
    assert answers == [expected] * 16


def test_curl_reads_the_same_answer(gateway: GatewayThread, expected: str) -> None:
    body = json.dumps({"model": "autoglm", "messages": ASKED, **GREEDY, "stream": True})
    command = ["curl", "-sN", f"{gateway.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    parts = [choice["delta"].get("content", "") for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(parts) == expected


def test_a_longer_answer_than_the_model_can_give_ends_where_it_ends(gateway: GatewayThread) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="autoglm", messages=ASKED, max_tokens=1_000_000, extra_body={"guided_regex": "[a-z]{2,9}"}
        )
    assert answer.choices[0].finish_reason == "stop"


def test_langchain_reads_the_same_answer_whole_and_streamed(gateway: GatewayThread, expected: str) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=SecretStr("none"),
        model="autoglm",
        temperature=0.0,
        max_completion_tokens=24,
        stream_usage=True,
    )
    whole = model.invoke("Name three colours.")
    pieces = list(model.stream("Name three colours."))
    assert whole.content == "".join(str(piece.content) for piece in pieces) == expected
    (usage,) = (piece.usage_metadata for piece in pieces if piece.usage_metadata is not None)  # type: ignore[attr-defined]
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == usage["output_tokens"] <= 24


def test_the_history_of_a_conversation_is_not_computed_again(gateway: GatewayThread) -> None:
    turns: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about the sea in two sentences."}]
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        for question in ("And the sky?", "And mountains?", "Which is the largest?"):
            answer = client.chat.completions.create(model="autoglm", messages=turns, temperature=0.0, max_tokens=40)
            known = answer.usage.prompt_tokens + answer.usage.completion_tokens  # type: ignore[union-attr]
            turns += [
                {"role": "assistant", "content": answer.choices[0].message.content},
                {"role": "user", "content": question},
            ]
            following = client.chat.completions.create(model="autoglm", messages=turns, temperature=0.0, max_tokens=1)
            assert following.usage is not None and following.usage.prompt_tokens_details is not None
            cached = following.usage.prompt_tokens_details.cached_tokens
            # The last token of an answer is chosen, not computed; one that ends it, and what follows, is the
            # template's.
            assert cached is not None and cached >= known - 2


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "maxLength": 12}, "warm": {"type": "boolean"}},
    "required": ["colour", "warm"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA}}}, None),
        ({"extra_body": {"guided_json": SCHEMA}}, None),
        ({"extra_body": {"guided_regex": "(red|green|blue), [a-z]{3,8}"}}, "(red|green|blue), [a-z]{3,8}"),
        ({"extra_body": {"guided_grammar": 'start: "a" /[0-9]{2}/'}}, "a[0-9]{2}"),
        ({"extra_body": {"guided_grammar": "open-autoglm"}, "max_tokens": 600}, r"(?s).*(do|finish)\(.*\).*"),
    ],
)
def test_an_answer_keeps_to_the_form_that_was_asked(
    gateway: GatewayThread, asked: dict[str, Any], pattern: str | None
) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(**{"model": "autoglm", "messages": ASKED, "max_tokens": 200, **asked})
    text = answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop" and text is not None
    if pattern is None:
        assert set(json.loads(text)) == {"colour", "warm"}
    else:
        assert re.fullmatch(pattern, text), text


def test_a_schema_that_cannot_be_kept_is_refused_by_name(gateway: GatewayThread) -> None:
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "colour"}}}
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
        pytest.raises(openai.BadRequestError, match="guided_json cannot be compiled"),
    ):
        client.chat.completions.create(model="autoglm", messages=ASKED, response_format=broken)  # type: ignore[call-overload]


def test_a_biased_token_is_said_or_never_said(gateway: GatewayThread, expected: str) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        asked = {"model": "autoglm", "messages": ASKED, "max_tokens": 4, "temperature": 0.0}
        first = client.chat.completions.create(**asked, logprobs=True)  # type: ignore[call-overload]
        said = client.chat.completions.create(**asked, logit_bias={"330": 100})  # type: ignore[call-overload]
    assert len(first.choices[0].logprobs.content) == 4
    assert len(set(said.choices[0].message.content.split())) == 1
