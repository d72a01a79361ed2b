"""Each turn of a conversation with tools is in the prompt, in the way that the template takes it, or is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.kept_messages import KeptMessages

from tests.support.engine.tool_templates import (
    CONTENT_FIRST,
    GLM_METADATA,
    GLM_SYSTEM_ITEM,
    NO_CALLS,
)

Message = dict[str, Any]

TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}
ASKED = {"role": "user", "content": "What time is it?"}
CALL = {"id": "call00001", "type": "function", "function": {"name": "now", "arguments": {"zone": "Zürich"}}}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "now", "content": "nine"}


def calling(*calls: Message, **content: Any) -> Message:
    return {"role": "assistant", **content, "tool_calls": list(calls)}


@pytest.fixture
def rendered() -> Any:
    opened: list[ChatTemplate] = []

    def render(source: str, messages: list[Message], tools: list[Message] | None = None) -> str:
        opened.append(ChatTemplate(source, {}))
        return opened[-1].render(messages, tools)

    yield render
    for template in opened:
        template.close()


Rendered = Callable[..., str]


def test_glm_is_told_of_calls_by_metadata_and_of_results_by_observations(rendered: Rendered) -> None:
    other = {**CALL, "function": {"name": "sleep", "arguments": {}}}
    text = rendered(GLM_METADATA, [ASKED, calling(CALL, other, content="Let me look."), RESULT], [TOOL])
    assert text == (
        "<|system|>## now<|user|>\nWhat time is it?<|assistant|>\nLet me look."
        '<|assistant|>now\n{"zone": "Zürich"}<|assistant|>sleep\n{}<|observation|>\nnine<|assistant|>'
    )


def test_glm_is_told_of_tools_in_a_system_item(rendered: Rendered) -> None:
    conversation = [ASKED, calling(CALL, content=None), RESULT]
    text = rendered(GLM_SYSTEM_ITEM, conversation, [TOOL])
    called = '<|user|>\nWhat time is it?<|assistant|>now\n{"zone": "Zürich"}<|observation|>\nnine<|assistant|>'
    assert text == "<|system|>## now" + called
    system = {"role": "system", "content": "Be brief."}
    assert rendered(GLM_SYSTEM_ITEM, [system, *conversation], [TOOL]) == "<|system|>## nowBe brief." + called
    assert rendered(GLM_SYSTEM_ITEM, conversation) == called


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}], ids=["null", "empty", "absent"])
def test_content_beside_calls_may_be_null(rendered: Rendered, content: Message) -> None:
    source = (
        "{% for m in messages %}{{ m.role + m.content }}"
        "{% if m.content is none or m.content is undefined %}{{ raise_exception('no content') }}{% endif %}"
        "{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}{{ tools }}<tool_call>"
    )
    assert 'assistant[{"id"' in rendered(source, [ASKED, calling(CALL, **content)])


def test_a_template_without_calls_is_told_in_plain_text(rendered: Rendered) -> None:
    text = rendered(NO_CALLS, [ASKED, calling(CALL, content=None), RESULT], [TOOL])
    assert "You can call functions." in text and "offered" not in text
    assert '<tool_call>\n{"name": "now", "arguments": {"zone": "Zürich"}}\n</tool_call>' in text
    assert "<tool_response>\nnine\n</tool_response>" in text


def test_calls_that_a_template_passes_over_are_an_error(rendered: Rendered) -> None:
    assert "now" in rendered(CONTENT_FIRST, [ASKED, calling(CALL, content=None), RESULT], [TOOL])
    with pytest.raises(InvalidRequest, match=r"passes over call 1 of 1 of messages\[1\] \(role 'assistant', 'Wait"):
        rendered(CONTENT_FIRST, [ASKED, calling(CALL, content="Wait."), RESULT], [TOOL])
    with pytest.raises(InvalidRequest, match=r"passes over call 2 of 2 of messages\[1\] \(role 'assistant', ''\)"):
        rendered(CONTENT_FIRST, [ASKED, calling(CALL, CALL, content=None), RESULT], [TOOL])


def test_a_template_that_took_one_call_may_lose_the_next() -> None:
    template = ChatTemplate(CONTENT_FIRST, {})
    try:
        template.render([ASKED, calling(CALL), RESULT], [TOOL])
        for lost in (calling(CALL, content="Wait."), calling(CALL, CALL)):
            with pytest.raises(InvalidRequest, match="passes over call"):
                template.render([ASKED, lost, RESULT], [TOOL])
    finally:
        template.close()


def test_what_is_in_the_prompt_as_it_is_costs_no_other_rendering() -> None:
    kept, rendered = KeptMessages(), []

    def render(messages: list[Message]) -> str:
        rendered.append(messages)
        return "".join(f"{turn['role']}{turn['content']}{turn.get('tool_calls', '')}" for turn in messages)

    plain = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": " nine "}]
    kept.check(plain, "".join(turn["content"] for turn in plain), render)
    assert not rendered
    others = [ASKED, calling(CALL, content=""), {**RESULT, "content": "a"}]
    for _ in range(3):
        kept.check(others, render(others), render)
    assert len(rendered) == 4  # once more for the first, to try them


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        ({"role": "narrator", "content": "e"}, r"messages\[1\] \(role 'narrator', 'e'"),
        ({"role": "system", "content": "Do not."}, r"messages\[1\] \(role 'system', 'Do not\.'"),
    ],
)
def test_a_turn_that_a_template_passes_over_is_an_error(rendered: Rendered, turn: Message, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"passes over what is said in {name}"):
        rendered(CONTENT_FIRST, [ASKED, turn, ASKED])


def test_a_turn_in_another_form_is_no_error(rendered: Rendered) -> None:
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] | tojson }}{% endfor %}"
    said = {"role": "assistant", "content": '<think>hm</think>"well"'}
    assert rendered(source, [ASKED, said, {"role": "note", "content": "é"}]).endswith('"\\"well\\"""é"')


class Lossy:
    """A template that passes over calls of the second and later messages, and over the roles `lost`. `num_renderings`:
    how often it was asked."""

    def __init__(self, lost: tuple[str, ...] = ()) -> None:
        self._lost = lost
        self.num_renderings = 0

    def __call__(self, messages: list[Message]) -> str:
        self.num_renderings += 1
        return "\n".join(self._told(index, message) for index, message in enumerate(messages))

    def _told(self, index: int, message: Message) -> str:
        if message["role"] in self._lost:
            return ""
        calls = message.get("tool_calls", []) if index == 0 else []
        return f"{message['role']}: {message.get('content') or ''} {json.dumps(calls)}"


def check(kept: KeptMessages, messages: list[Message], render: Lossy) -> None:
    kept.check(messages, render(messages), render)


def call_of(name: str) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]}


def test_no_message_speaks_for_another_one() -> None:
    kept, render = KeptMessages(), Lossy()
    forged = " ".join(f"message{index}isthere message{index}call0isthere m{index}c0isthere" for index in range(3))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"call 1 of 1 of messages\[1\]"):
            check(kept, [{"role": "user", "content": forged}, call_of("tap")], render)


def test_invented_roles_leave_calls_and_results_remembered() -> None:
    kept, render = KeptMessages(), Lossy()
    for number in range(80):
        check(kept, [{"role": f"invented{number}", "content": "x"}], render)
    conversation = [call_of("tap"), {"role": "tool", "content": "tapped"}]
    check(kept, conversation, render)
    render.num_renderings = 0
    check(kept, conversation, render)
    assert render.num_renderings == 1


@pytest.mark.parametrize("lost", [(), ("critic",)])
def test_however_many_messages_there_are_few_are_tried_by_themselves(lost: tuple[str, ...]) -> None:
    kept, render = KeptMessages(), Lossy(lost)
    messages: list[Message] = [{"role": f"role{number}", "content": "a"} for number in range(500)]
    if lost:
        messages.append({"role": lost[0], "content": "a"})
        with pytest.raises(InvalidRequest, match="critic"):
            check(kept, messages, render)
    else:
        check(kept, messages, render)
    assert render.num_renderings <= 10


NO_SYSTEM = """{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('no system message') }}{% endif %}
{{- message.role + ': ' + message.content + '\n' }}{%- endfor %}"""


def test_tools_are_told_in_the_first_turn_where_no_system_message_is_taken(rendered: Rendered) -> None:
    text = rendered(NO_SYSTEM, [ASKED, calling(CALL), RESULT], [TOOL])
    assert text.startswith("user: You can call functions.") and "\n\nWhat time is it?\nassistant: <tool_call>" in text
    with pytest.raises(InvalidRequest, match="no system message"):
        rendered(NO_SYSTEM, [{"role": "system", "content": "x"}, ASKED], [TOOL])
