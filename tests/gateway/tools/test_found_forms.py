"""How a model calls is found in its chat template, and what the template renders is read back and held to."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator

import pytest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.tools import call_form as of_engine
from autoglm_gateway.tools import call_form
from autoglm_gateway.tools.named_forms import NAMED
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.tool_templates import (
    CONTENT_FIRST,
    FORMS,
    GLM_METADATA,
    GLM_SYSTEM_ITEM,
    NO_CALLS,
    TEMPLATES,
)
from tests.support.gateway.call_round_trip import SCHEMAS, calls_of, read

TOOL = {"type": "function", "function": {"name": "now"}}
OPENED = "{{ tools }}{%% for m in messages %%}{{ m.content }}{{ %s }}{%% endfor %%}"
EXAMPLES = {
    "hermes": '<tool_call>\n{"name": "«name»", "arguments": JSON}\n</tool_call>',
    "llama": '{"name": "«name»", "parameters": JSON}',
    "glm": "«name»\nJSON",
    "glm-xml": "<tool_call>«name»<arg_key>«key»</arg_key>\n<arg_value>VALUE</arg_value></tool_call>",
    "mistral": '[TOOL_CALLS][{"name": "«name»", "arguments": JSON, "id": "«id»"}]',
    "function tags": (
        "<tool_call>\n<function=«name»>\n<parameter=«key»>\nVALUE\n</parameter>\n</function>\n</tool_call>"
    ),
    "invoke tags": '<calls>\n<invoke name="«name»">\n<parameter name="«key»">VALUE</parameter>\n</invoke>\n</calls>',
    "typed tags": (
        '<calls>\n<invoke name="«name»">\n<parameter name="«key»" string="true">VALUE</parameter>\n</invoke>\n</calls>'
    ),
    "numbered": "<|calls|><|call|>functions.«name»:«index»<|arguments|>JSON<|end|><|calls_end|>",
    "name as key": '<|tools|>[{"«name»": JSON}]<|end|>',
    "identified": '<|action|>[\n{"call_id": "«index»", "tool_name": "«name»", "input": JSON}\n]<|action_end|>',
    "python": "<|call|>[«name»(«key»='VALUE')]<|call_end|>",
    "quoted": '<|call>call:«name»{«key»:<|"|>VALUE<|"|>}<call|>',
    "arguments as text": "<function=«name»>JSON</function>",
    "one call": '<|call|>{"name": "«name»", "arguments": JSON}',
    "short ids": "[TOOL_CALLS]«name»[CALL_ID]«id»[ARGS]JSON",
    "thinking": '<tool_call>\n{"name": "«name»", "arguments": JSON}\n</tool_call>',
}


@pytest.fixture
def template(request: pytest.FixtureRequest) -> Iterator[ChatTemplate]:
    made = ChatTemplate(request.param, {"bos_token": "<s>", "eos_token": "</s>"})
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "template"), (TEMPLATES | FORMS).items(), ids=[*TEMPLATES, *FORMS], indirect=["template"]
)
def test_a_form_is_found_and_its_calls_come_back(name: str, template: ChatTemplate) -> None:
    assert calls_of(template) == {"form": EXAMPLES[name], "round trip": "right", "grammar": "right"}


@functools.cache
def found(name: str) -> call_form.CallForm:
    made = ChatTemplate(FORMS[name], {})
    try:
        return call_form.CallForm.of(made.call_form.told())
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_the_text_is_streamed_is_whole_and_what_is_no_call_stays(name: str, data: st.DataObject) -> None:
    form = found(name)
    whole = [text.replace(call_form.NAME, "write") for text in form.texts() if text]
    parts = [piece for text in whole for piece in re.findall(r"<[^<>]*>?|\s+|[^<\s]+", text)]
    call = f"{form.opening}now{form.middle}{'' if form.tags else '{}'}{form.closing}"
    names = [
        call.replace(call_form.NAME, "now").replace(call_form.INDEX, "0"),
        *SCHEMAS,
        "unknown",
        "text",
        '{"text": "a"}',
        "{}",
        "17",
        "'it'",
        '"',
        "}",
        ")",
        "é",
        "«name»",
    ]
    text = data.draw(st.lists(st.sampled_from([*whole, *parts, *names]), max_size=14).map("".join))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said, calls = read(form, [text])
    assert read(form, pieces) == (said, calls) == read(form, list(text))
    assert calls or said == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("function tags", "<function=write>\n<parameter=text>\nhi\n</parameter>\n</function>"),
        ("function tags", "<function=write><parameter=text>hi</parameter></function></tool_call>"),
        ("invoke tags", '<invoke name="write">\n<parameter name="text">hi</parameter>\n</invoke>\n</calls>'),
        ("numbered", '<|call|>functions.write:0<|arguments|>{"text": "hi"}<|end|>'),
        ("python", "<|call|>[write(text='hi')]"),
        ("python", '<|call|>[write( text = "hi" )]<|call_end|>'),
    ],
)
def test_marks_that_a_model_leaves_out_are_not_missed(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(found(name), pieces) == ("", [("write", '{"text": "hi"}')])
        assert read(found(name), ["Well:\n", *pieces, " So."]) == ("Well:So.", [("write", '{"text": "hi"}')])


@pytest.mark.parametrize(
    "template",
    [
        NO_CALLS,
        "{{ tools }}",
        OPENED % "'{' * 20000",
        OPENED % "'{\"a\":' * 1500 + m.tool_calls[0].function.name if m.tool_calls",
        "{{ tools }}{% for m in messages %}{{ m.tool_calls | length }}{% endfor %}",
    ],
    indirect=True,
    ids=["no calls", "tools alone", "too long", "too deep", "a number"],
)
def test_calls_that_cannot_be_read_are_told_in_plain_text(template: ChatTemplate) -> None:
    assert template.call_form == of_engine.PLAIN_TEXT
    assert call_form.CallForm.of(of_engine.PLAIN_TEXT.told()) == NAMED["hermes"][0]


@pytest.mark.parametrize("template", [GLM_METADATA, GLM_SYSTEM_ITEM], indirect=True)
def test_glm_4_calls_by_metadata(template: ChatTemplate) -> None:
    assert template.call_form.example() == EXAMPLES["glm"]


@pytest.mark.parametrize("template", [CONTENT_FIRST], indirect=True)
def test_a_template_with_room_for_one_call_has_one(template: ChatTemplate) -> None:
    assert template.call_form.between is None and not template.call_form.text_first


def test_what_ends_an_answer_is_of_no_call() -> None:
    made = ChatTemplate(FORMS["numbered"], {}, end_tokens=["<|calls_end|>"])
    try:
        assert made.call_form.closing == "<|end|>"
    finally:
        made.close()


def test_marks_that_decoding_hides_tell_no_call() -> None:
    made = ChatTemplate(FORMS["numbered"], {}, hidden=["<|arguments|>"])
    try:
        assert made.call_form == of_engine.PLAIN_TEXT
        assert "You can call functions." in made.render([{"role": "user", "content": "x"}], [TOOL])
    finally:
        made.close()


def test_the_gateway_reads_what_the_engine_tells() -> None:
    for ours, theirs in ((call_form.CallForm, of_engine.CallForm), (call_form.Tags, of_engine.Tags)):
        assert [field.name for field in dataclasses.fields(ours)] == [
            field.name for field in dataclasses.fields(theirs)
        ]
    told = json.loads(json.dumps(of_engine.PLAIN_TEXT.told()))
    assert call_form.CallForm.of(told).opening == of_engine.PLAIN_TEXT.opening
    with pytest.raises(TypeError, match="unknown"):
        call_form.CallForm.of({**told, "unknown": 1})
