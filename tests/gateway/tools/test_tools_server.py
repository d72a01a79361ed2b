"""Tools with the real server and model, as OpenAI's package and LangChain see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_client import Client
from autoglm_engine.tokenizer.tools.call_form import PLAIN_TEXT
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.gateway.gateway_server import GatewayThread

pytestmark = pytest.mark.server

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "How the weather is", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]
HELLO = [{"role": "user", "content": "How will the weather be in Rome for 3 days?"}]
ASKED: dict[str, Any] = {"model": "autoglm", "messages": HELLO, "tools": TOOLS, "temperature": 0.0, "max_tokens": 60}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[openai.OpenAI]:
    with (
        GatewayThread(GatewaySettings(servers=(server.grpc_url,))) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def streamed(client: openai.OpenAI, **changes: Any) -> tuple[str, list[tuple[str, str]], str | None]:
    """Content, calls, and the finish reason, of all chunks."""
    content, calls, reason = "", list[tuple[str, str]](), None
    for chunk in client.chat.completions.create(**{**ASKED, **changes, "stream": True}):
        (choice,) = chunk.choices
        content, reason = content + (choice.delta.content or ""), choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            calls += [(part.function.name, "")] if part.id else []
            calls[part.index] = (calls[part.index][0], calls[part.index][1] + (part.function.arguments or ""))
    return content, calls, reason


def told(answer: Any) -> tuple[str, list[tuple[str, str]], str | None]:
    choice = answer.choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason


def test_the_model_says_how_it_calls(server: LocalServer) -> None:
    with Client(server.grpc_url) as client:
        limits = client.limits()
    assert limits.call_form == json.loads(json.dumps(PLAIN_TEXT.told())) and limits.call_tokens == {}


def test_tools_are_in_the_prompt_and_streamed_is_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED)
    bare = client.chat.completions.create(**{**ASKED, "tool_choice": "none"})
    assert told(whole) == streamed(client)
    assert whole.usage.prompt_tokens > bare.usage.prompt_tokens + 50


@pytest.mark.parametrize("choice", ["required", WEATHER], ids=["required", "function"])
def test_a_call_that_must_come_comes_and_keeps_to_its_schema(client: openai.OpenAI, choice: Any) -> None:
    changes = {"tool_choice": choice, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**ASKED, **changes)
    content, calls, reason = told(answer)
    assert (content, len(calls), reason) == ("", 1, "tool_calls")
    ((name, arguments),) = calls
    if name == "get_weather":
        read = json.loads(arguments)
        assert read["city"] in ("Paris", "Rome", "Oslo") and read["days"] <= 9 and len(read) == 2
    assert choice == "required" or name == "get_weather"
    assert streamed(client, **changes) == (content, calls, reason)


def test_a_strict_tool_may_be_called_or_not(client: openai.OpenAI) -> None:
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    content, calls, _ = streamed(client, tools=strict)
    assert content or calls
    for _, arguments in calls:
        assert json.loads(arguments)["city"] in ("Paris", "Rome", "Oslo")


def test_an_answer_in_json_or_calls(client: openai.OpenAI) -> None:
    answer = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": {**answer, "additionalProperties": False}}}
    content, calls, _ = streamed(client, response_format=form)
    assert calls or json.loads(content)["mood"] in ("good", "bad")


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(**{**ASKED, "tools": [tool]})


def test_the_conversation_goes_on_with_what_came_of_the_call(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**ASKED, tool_choice=WEATHER)
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 24 degrees."}
    second = client.chat.completions.create(**{**ASKED, "messages": [*HELLO, message, result]})
    assert second.usage is not None and first.usage is not None and second.usage.prompt_tokens_details is not None
    grown = second.usage.prompt_tokens - first.usage.prompt_tokens - first.usage.completion_tokens
    assert 0 < grown < 60
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens


def test_langchain_binds_tools(client: openai.OpenAI) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="autoglm", base_url=str(client.base_url), api_key="none", temperature=0, max_tokens=60)  # type: ignore[call-arg,arg-type]
    bound = model.bind_tools(TOOLS, tool_choice="get_weather")
    (call,) = bound.invoke("How will the weather be in Rome?").tool_calls
    assert call["name"] == "get_weather" and call["args"]["city"] in ("Paris", "Rome", "Oslo")
    chunks = list(bound.stream("How will the weather be in Rome?"))
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined = joined + chunk
    assert [(one["name"], one["args"]) for one in joined.tool_calls] == [(call["name"], call["args"])]  # type: ignore[attr-defined]
