"""`reasoning_content` as the real openai package gets it, in front of a server that lives in the test."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from autoglm_client import ModelLimits, Piece, Result, StageTimes, ThinkingMarks, Usage
from autoglm_gateway.api.answer_schema import ChatCompletion, ChatCompletionChunk
from autoglm_gateway.api.answers import ChatShape
from autoglm_gateway.api.reasoning_answers import ReasoningShape
from autoglm_gateway.api.tool_answers import ToolShape
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.tools.schema import ToolOptions
from autoglm_gateway.tools.use import tool_use
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from tests.support.client.client_fakes import FakeTransport, Script, inputs_of
from tests.support.gateway.gateway_fakes import HELLO, Opened, opened
from tests.support.gateway.page_gateway import gateway_before

WORDS = ("<th", "ink>\nOne ", "and two.", "\n</thi", "nk>\n", "\nThr", "ee.")
OPENED = ("One ", "and two.", "\n</thi", "nk>\n\nThr", "ee.")
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}


def thinker(words: tuple[str, ...] = WORDS, *, is_open: bool = False, thinks: bool = True) -> FakeTransport:
    transport = FakeTransport(Script(words=words, finish_reason="stop", prompt_thinks=is_open))
    transport.limits["thinking"] = ["<think>", "</think>", "", ""] if thinks else None
    return transport


def client_of(gateway: Opened) -> Any:
    """Its requests have fields, and its answers a form, that the package's types do not know."""
    return gateway.openai("x")


async def whole(
    transport: FakeTransport, settings: GatewaySettings | None = None, **more: Any
) -> ChatCompletionMessage:
    async with opened(settings or GatewaySettings(), transport) as gateway:
        client = client_of(gateway)
        answer = await client.chat.completions.create(model="autoglm", messages=HELLO, **more)
        ChatCompletion.model_validate(answer.model_dump(exclude_unset=True))
        message: ChatCompletionMessage = answer.choices[0].message
        return message


async def streamed(transport: FakeTransport, settings: GatewaySettings | None = None, /, **more: Any) -> list[Any]:
    """The deltas."""
    async with opened(settings or GatewaySettings(), transport) as gateway:
        client = client_of(gateway)
        stream = await client.chat.completions.create(model="autoglm", messages=HELLO, stream=True, **more)
        chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True))
    return [chunk.choices[0].delta for chunk in chunks]


def reasoning(said: Any) -> str:
    return getattr(said, "reasoning_content", None) or ""


@pytest.mark.parametrize(
    ("words", "is_open"), [(WORDS, False), (OPENED, True)], ids=["opened by the model", "by the prompt"]
)
async def test_thinking_is_told_apart(words: tuple[str, ...], is_open: bool) -> None:
    message = await whole(thinker(words, is_open=is_open))
    assert (reasoning(message), message.content) == ("One and two.", "Three.")
    deltas = await streamed(thinker(words, is_open=is_open))
    assert [(reasoning(delta), delta.content) for delta in deltas if reasoning(delta) or delta.content] == [
        ("One", None),
        (" and two.", None),
        ("", "Thr"),
        ("", "ee."),
    ]


async def test_usage_and_finish_reason_are_those_of_the_whole_answer() -> None:
    async with opened(GatewaySettings(), thinker()) as gateway:
        answer = await client_of(gateway).chat.completions.create(model="autoglm", messages=HELLO)
    async with opened(GatewaySettings(reasoning_format="off"), thinker()) as gateway:
        plain = await client_of(gateway).chat.completions.create(model="autoglm", messages=HELLO)
    assert answer.usage == plain.usage and answer.choices[0].finish_reason == plain.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("settings", "more", "thinks"),
    [
        ({}, {}, False),
        ({"reasoning_format": "off"}, {}, True),
        ({}, {"separate_reasoning": False}, True),
    ],
    ids=["no marks", "setting", "request"],
)
async def test_it_stays_in_the_content(settings: dict[str, Any], more: dict[str, Any], thinks: bool) -> None:
    made = GatewaySettings(**settings)
    message = await whole(thinker(thinks=thinks), made, extra_body=more)
    assert message.content == "".join(WORDS) and not hasattr(message, "reasoning_content")
    deltas = await streamed(thinker(thinks=thinks), made, extra_body=more)
    assert "".join(delta.content or "" for delta in deltas) == "".join(WORDS) and not any(map(reasoning, deltas))


async def test_it_is_left_out_where_it_is_not_wanted() -> None:
    more: Any = {"extra_body": {"include_reasoning": False}}
    message = await whole(thinker(), **more)
    assert message.content == "Three." and not hasattr(message, "reasoning_content")
    deltas = await streamed(thinker(), **more)
    assert "".join(delta.content or "" for delta in deltas) == "Three." and not any(map(reasoning, deltas))


async def test_marks_of_a_setting_hold_for_a_model_whose_template_has_none() -> None:
    words = ("<think>One", "</think>\n<ans", "wer>Three.</ans", "wer>")
    message = await whole(thinker(words, thinks=False), GatewaySettings(reasoning_format="think-answer"))
    assert (reasoning(message), message.content) == ("One", "Three.")


@pytest.mark.parametrize("is_open", [False, True])
async def test_calls_come_after_thinking_and_none_is_read_inside_of_it(is_open: bool) -> None:
    text = f"{'' if is_open else '<think>'}Shall I {CALL}?\n</think>\n\nI look. {CALL}"
    asked: Any = {"tools": [TOOL]}
    message = await whole(thinker((text,), is_open=is_open), **asked)
    assert (reasoning(message), message.content) == (f"Shall I {CALL}?", "I look.")
    assert [call.function.name for call in message.tool_calls or () if call.type == "function"] == ["now"]
    deltas = await streamed(thinker(tuple(text), is_open=is_open), **asked)
    assert "".join(map(reasoning, deltas)) == f"Shall I {CALL}?"
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    calls = [call for delta in deltas for call in delta.tool_calls or () if call.id]
    assert [call.function.name for call in calls] == ["now"]


@pytest.mark.parametrize(
    ("more", "thinks", "after"),
    [
        ({"response_format": SCHEMA}, True, True),
        ({"extra_body": {"guided_regex": "a"}}, True, True),
        ({"tools": [TOOL], "tool_choice": "required"}, True, True),
        ({"tools": [TOOL]}, True, False),
        ({}, True, False),
        ({"response_format": SCHEMA}, False, False),
        ({"response_format": SCHEMA, "extra_body": {"separate_reasoning": False}}, True, False),
    ],
)
async def test_guides_hold_after_thinking_where_that_is_told_apart(
    more: dict[str, Any], thinks: bool, after: bool
) -> None:
    transport = thinker(thinks=thinks)
    await whole(transport, **more)
    sent = inputs_of(transport.requests[0]).get("guide_after", b"")[4:]
    assert sent == (b"thinking" if after else b"")


async def test_a_message_is_sent_back_as_it_is() -> None:
    transport = thinker()
    message = await whole(transport)
    async with opened(GatewaySettings(), transport) as gateway:
        again = [*HELLO, message, *HELLO]
        await client_of(gateway).chat.completions.create(model="autoglm", messages=again)
    sent = json.loads(inputs_of(transport.requests[1])["messages"][4:])
    assert sent[1] == {"role": "assistant", "content": "Three.", "reasoning_content": "One and two."}


async def test_an_answer_that_was_cut_short_is_sent_back_too() -> None:
    transport = thinker(("<think>One ",))
    message = await whole(transport, tools=[TOOL])
    assert message.content is None and reasoning(message) == "One"
    async with opened(GatewaySettings(), transport) as gateway:
        await client_of(gateway).chat.completions.create(model="autoglm", messages=[*HELLO, message, *HELLO])
    sent = json.loads(inputs_of(transport.requests[1])["messages"][4:])
    assert sent[1] == {"role": "assistant", "content": "", "reasoning_content": "One"}


async def test_the_packages_own_accumulator_joins_it() -> None:
    async with (
        opened(GatewaySettings(), thinker()) as gateway,
        client_of(gateway).chat.completions.stream(model="autoglm", messages=HELLO) as stream,
    ):
        async for _ in stream:
            pass
        message = (await stream.get_final_completion()).choices[0].message
    assert (reasoning(message), message.content) == ("One and two.", "Three.")


async def test_only_an_assistant_thinks() -> None:
    asked = {"model": "autoglm", "messages": [{**HELLO[0], "reasoning_content": "Hm."}]}
    async with opened(GatewaySettings(), thinker()) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].reasoning_content"


async def test_log_probabilities_stay_with_their_tokens() -> None:
    deltas = await streamed(thinker(), logprobs=True)
    assert "".join(map(reasoning, deltas)) == "One and two."
    assert "".join(delta.content or "" for delta in deltas) == "Three."


async def test_each_choice_thinks_for_itself() -> None:
    async with opened(GatewaySettings(), thinker()) as gateway:
        client = client_of(gateway)
        stream = await client.chat.completions.create(model="autoglm", messages=HELLO, n=2, stream=True)
        said: dict[int, list[str]] = {0: ["", ""], 1: ["", ""]}
        async for chunk in stream:
            for choice in chunk.choices:
                said[choice.index][0] += reasoning(choice.delta)
                said[choice.index][1] += choice.delta.content or ""
    assert said == {0: ["One and two.", "Three."], 1: ["One and two.", "Three."]}


def test_the_example_of_the_docs_prints_thinking_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^```python\n(.*?)^```", page.split("## Thinking", 1)[1].split("\n## ")[0], re.DOTALL | re.MULTILINE
    )
    transport = thinker()
    with gateway_before(transport) as gateway:
        exec(compile(block.replace("http://127.0.0.1:8080", gateway.url), "gateway.md", "exec"), {})
    assert capsys.readouterr().out == "One and two.Three."
    assert json.loads(inputs_of(transport.requests[0])["chat_template_kwargs"][4:]) == {"enable_thinking": True}


PARTS = st.sampled_from(
    [CALL, "<tool_call>", "<think>", "</think>", "\n", "a < b", '{"name": "now"', "Zürich", " ", CALL[:20], CALL[20:]]
)


@given(st.lists(PARTS, max_size=8).map("".join), st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_any_cutting_of_thinking_and_calls_tells_the_same(text: str, cuts: list[int], is_open: bool) -> None:
    def shape() -> ReasoningShape:
        use = tool_use(ToolOptions.model_validate({"tools": [TOOL]}), "hermes", ModelLimits(8, 8, 1))
        assert use is not None
        return ReasoningShape(ToolShape(ChatShape(None), use), ThinkingMarks("<think>", "</think>"))

    stages, usage = StageTimes(*[0.0] * 5), Usage(1, 1, 0)
    result = Result(text, "stop", usage, stages, 0.0, None, "", "", prompt_thinks=is_open)
    message = shape().choice(0, result, "stop")["message"]
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    streaming = shape()
    streaming.opening(0)
    deltas = list[Any]()
    for number, piece in enumerate(pieces, start=1):
        reason = "stop" if number == len(pieces) else None
        part = streaming.part(0, Piece(piece, reason, usage, stages, prompt_thinks=is_open))
        deltas += [part["delta"]] if part else []
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.get("reasoning_content", "")
    assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "")
    calls: dict[int, list[str]] = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        name, arguments = calls.setdefault(call["index"], ["", ""])
        function = call["function"]
        calls[call["index"]] = [name + function.get("name", ""), arguments + function.get("arguments", "")]
    assert [*calls.values()] == [
        [call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())
    ]
