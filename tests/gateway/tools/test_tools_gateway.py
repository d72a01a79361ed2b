"""Tools as the real openai package has them, in front of a server that lives in the test."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from autoglm_client import Piece, StageTimes, TokenLogprob, Usage
from autoglm_gateway.api.answers import ChatShape
from autoglm_gateway.api.tool_answers import ToolShape
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.tools.answer_schema import CallAnswer, CallDelta
from autoglm_gateway.tools.named_forms import NAMED
from autoglm_gateway.tools.schema import Tool
from autoglm_gateway.tools.use import ToolUse
from openai.types.chat import ChatCompletionChunk

from tests.gateway.api.test_gateway import opened
from tests.support.client.client_fakes import FakeTransport, Script, inputs_of

CITY = {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
HELLO = [{"role": "user", "content": "Weather in Paris, and the time?"}]
CALLS = (
    "I look.",
    "\n<tool_",
    'call>\n{"name": "get_wea',
    'ther", "arguments": {"city"',
    ': "Par',
    'is"}}',
    "\n</tool_call>",
    '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>',
)
ASKED: dict[str, Any] = {"model": "autoglm", "messages": HELLO, "tools": TOOLS}


def script(*words: str, finish_reason: str = "stop") -> FakeTransport:
    return FakeTransport(Script(words=words, finish_reason=finish_reason))


async def chunks_of(client: openai.AsyncOpenAI, **changes: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(**{**ASKED, "stream": True, **changes})
    return [chunk async for chunk in stream]


async def test_calls_are_told_whole_and_the_model_is_told_of_the_tools() -> None:
    transport = script(*CALLS)
    async with opened(transport) as client:
        answer = await client.chat.completions.create(**ASKED)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    calls = choice.message.tool_calls or []
    assert [(call.type, call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
        ("function", "get_weather", '{"city": "Paris"}'),
        ("function", "now", "{}"),
    ]
    assert len({call.id for call in calls}) == 2 and all(call.id.startswith("call_") for call in calls)
    assert json.loads(inputs_of(transport.requests[0])["tools"][4:]) == TOOLS


async def test_calls_are_streamed_as_openai_streams_them() -> None:
    async with opened(script(*CALLS)) as client:
        chunks = await chunks_of(client)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas) == "I look."
    parts = [part for delta in deltas for part in delta.tool_calls or ()]
    heads = [part for part in parts if part.id]
    assert [(head.index, head.type, head.function and head.function.name) for head in heads] == [
        (0, "function", "get_weather"),
        (1, "function", "now"),
    ]
    pieces = [part.function.arguments for part in parts if part.index == 0 and part.function]
    assert pieces == ['{"city"', ': "Par', 'is"}'] and parts[0] is heads[0]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


async def test_calls_are_what_the_document_says() -> None:
    async with opened(script(*CALLS)) as client:
        whole = json.loads((await client.chat.completions.with_raw_response.create(**ASKED)).text)
        raw = (await client.chat.completions.with_raw_response.create(**ASKED, stream=True)).http_response
        lines = [line.removeprefix("data: ") async for line in raw.aiter_lines() if line.startswith("data: {")]
    for call in whole["choices"][0]["message"]["tool_calls"]:
        assert CallAnswer.model_validate(call).model_dump() == call
    deltas = [part for line in lines for part in json.loads(line)["choices"][0]["delta"].get("tool_calls", ())]
    assert len(deltas) > 3
    for part in deltas:
        assert CallDelta.model_validate(part).model_dump(exclude_unset=True) == part


async def test_the_packages_own_accumulator_reads_the_stream() -> None:
    async with opened(script(*CALLS)) as client, client.chat.completions.stream(**ASKED) as stream:
        async for _ in stream:
            pass
        message = (await stream.get_final_completion()).choices[0].message
    assert message.content == "I look."
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
        ("get_weather", '{"city": "Paris"}'),
        ("now", "{}"),
    ]


async def test_an_answers_message_is_sent_back_with_what_came_of_its_calls() -> None:
    transport = script(*CALLS)
    async with opened(transport) as client:
        message = (await client.chat.completions.create(**ASKED)).choices[0].message
        calls = message.tool_calls or []
        answers = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        await client.chat.completions.create(**{**ASKED, "messages": [*HELLO, message, *answers]})
    sent = json.loads(inputs_of(transport.requests[1])["messages"][4:])
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"][0] == {
        "id": calls[0].id,
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    assert sent[2] == {"role": "tool", "content": "sunny", "tool_call_id": calls[0].id}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_calls_is_an_ordinary_one(stream: bool) -> None:
    words = ("It is ", "<tool_call> ", "cold. ")
    async with opened(script(*words)) as client:
        if stream:
            choices = [chunk.choices[0] for chunk in await chunks_of(client)]
            said = "".join(choice.delta.content or "" for choice in choices)
            assert choices[-1].finish_reason == "stop" and not any(choice.delta.tool_calls for choice in choices)
        else:
            choice = (await client.chat.completions.create(**ASKED)).choices[0]
            said = choice.message.content or ""
            assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert said == "".join(words)


async def test_an_answer_that_is_cut_short_says_so() -> None:
    async with opened(script(*CALLS[:5], finish_reason="length")) as client:
        choice = (await client.chat.completions.create(**ASKED)).choices[0]
        chunks = await chunks_of(client)
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert call.type == "function" and call.function.arguments == '{"city": "Par'


async def test_one_call_where_no_more_are_wanted() -> None:
    async with opened(script(*CALLS)) as client:
        choice = (await client.chat.completions.create(**ASKED, parallel_tool_calls=False)).choices[0]
    assert len(choice.message.tool_calls or ()) == 1


async def test_one_call_where_the_template_has_room_for_no_more() -> None:
    transport = script(*CALLS)
    transport.limits["call_form"] = {**transport.limits["call_form"], "between": None}
    async with opened(transport) as client:
        choice = (await client.chat.completions.create(**ASKED)).choices[0]
        await client.chat.completions.create(**ASKED, tool_choice="required")
    assert len(choice.message.tool_calls or ()) == 1 and choice.message.content == "I look."
    assert b"call)*" not in inputs_of(transport.requests[1])["guided_grammar"]


async def test_choices_are_parsed_apart() -> None:
    async with opened(script(*CALLS)) as client:
        answer = await client.chat.completions.create(**ASKED, n=2)
        chunks = await chunks_of(client, n=2)
    assert [len(choice.message.tool_calls or ()) for choice in answer.choices] == [2, 2]
    heads = [
        (chunk.choices[0].index, part.index)
        for chunk in chunks
        for part in chunk.choices[0].delta.tool_calls or ()
        if part.id
    ]
    assert sorted(heads) == [(0, 0), (0, 1), (1, 0), (1, 1)]


async def test_no_tools_where_none_may_be_called() -> None:
    transport = script(*CALLS)
    async with opened(transport) as client:
        choice = (await client.chat.completions.create(**ASKED, tool_choice="none")).choices[0]
    assert choice.message.content == "".join(CALLS) and "tools" not in inputs_of(transport.requests[0])


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "required"}, ("call_0", "call_1", "call)*")),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ("call_0", "call_1")),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ('"now', "call_0")),
        ({"tools": [{"type": "function", "function": {"name": "now", "strict": True}}]}, ("FREE", "call_0")),
        ({"response_format": {"type": "json_object"}}, ("start: said | ", 'said: %json {"type": "object"')),
        ({"response_format": {"type": "json_object"}, "tool_choice": "required"}, ("start: ", "call_1")),
    ],
)
async def test_calls_that_must_come_or_be_strict_have_a_grammar(
    changes: dict[str, Any], holds: tuple[str, ...] | None
) -> None:
    transport = script(*CALLS)
    async with opened(transport) as client:
        await client.chat.completions.create(**{**ASKED, **changes})
    sent = inputs_of(transport.requests[0]).get("guided_grammar")
    assert b"strict" not in inputs_of(transport.requests[0])["tools"]
    assert (sent is None) == (holds is None)
    for part in holds or ():
        assert part in (sent or b"")[4:].decode()


async def test_mistrals_ids_are_those_that_its_templates_take() -> None:
    async with opened(script('[TOOL_CALLS][{"name": "now", "arguments": {}}]'), tool_format="mistral") as client:
        choice = (await client.chat.completions.create(**ASKED)).choices[0]
    (call,) = choice.message.tool_calls or ()
    assert len(call.id) == 9 and call.id.isalnum()


CALL = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def test_log_probabilities_stay_with_the_tokens_also_where_nothing_is_said_yet() -> None:
    use = ToolUse([Tool.model_validate(TOOLS[1])], "auto", NAMED["hermes"], {})
    shape = ToolShape(ChatShape(top=0), use)
    shape.opening(0)
    entry = TokenLogprob(5, "<tool", -0.5, ())
    usage, stages = Usage(1, 1, 0), StageTimes(0, 0, 0, 0, 0)
    part = shape.part(0, Piece("<tool", None, usage, stages, (entry,)))
    assert part is not None and part["delta"] == {} and part["finish_reason"] is None
    assert part["logprobs"]["content"][0]["token"] == "<tool"
    assert shape.part(0, Piece("_call>", None, usage, stages)) is None
    last = shape.part(0, Piece(" no", "stop", usage, stages))
    assert last is not None and last["delta"] == {"content": "<tool_call> no"}


def nested(depth: int) -> list[dict[str, Any]]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return [{"type": "function", "function": {"name": "f", "parameters": schema}}]


async def test_schemas_may_be_deep_but_not_without_end() -> None:
    async with opened(script("x")) as client:
        await client.chat.completions.create(**{**ASKED, "tools": nested(99), "tool_choice": "required"})
        with pytest.raises(openai.BadRequestError, match="nests deeper than 100 levels"):
            await client.chat.completions.create(**{**ASKED, "tools": nested(102), "tool_choice": "required"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": openai.NOT_GIVEN, "tool_choice": "auto"}, "tool_choice"),
        ({"tools": openai.NOT_GIVEN, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tool_choice": {"type": "function", "function": {"name": "later"}}}, "tool_choice"),
        ({"extra_body": {"guided_regex": "a+"}}, "tools"),
        ({"extra_body": {"guided_json": "{"}}, "guided_json"),
        ({"extra_body": {"guided_json": "[" * 300 + "]" * 300}}, "guided_json"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].tool_calls"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    transport = FakeTransport()
    async with opened(transport) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{**ASKED, **changes})
    assert caught.value.param == field and not transport.requests


async def test_a_model_whose_form_is_not_known_takes_no_tools() -> None:
    transport = FakeTransport()
    transport.limits["call_form"] = None
    async with opened(transport) as client:
        with pytest.raises(openai.BadRequestError, match="how this model calls functions is not known") as caught:
            await client.chat.completions.create(**ASKED)
    assert caught.value.param == "tools"


def test_a_form_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="tool_format is 'xml'; it must be one of auto, hermes"):
        GatewaySettings(tool_format="xml")
