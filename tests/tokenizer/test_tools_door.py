"""Tools on their way into the prompt: as transformers renders them, or in plain text where a template has no place for
them."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from autoglm_engine.cache.fingerprint import fingerprint
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.options import OptionRules
from autoglm_engine.tokenizer.artifact_texts import with_visible_calls
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.prompt import Prompter
from autoglm_engine.tokenizer.tools.definitions import parse_tools
from autoglm_engine.triton.tokenizer_model import RequestPreprocessor
from tokenizers import AddedToken, Tokenizer

from tests.support.engine.fakes import byte_tokenizer
from tests.support.engine.tool_templates import QWEN, TEMPLATES
from tests.tokenizer.test_prompt import SMOLLM2, SPECIAL

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "How the <weather> is: 天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


def called(name: str, number: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Paris?"}]
CHATS: list[list[dict[str, Any]]] = [
    ASKED,
    [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [called("get_weather", city="巴黎")]},
        {"role": "tool", "tool_call_id": "call00000", "name": "get_weather", "content": '{"sky": "<blue>"}'},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "And the time?"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [WEATHER, CLOCK]], ids=["none", "two"])
@pytest.mark.parametrize("messages", CHATS, ids=["asked", "called"])
def test_rendering_equals_transformers(
    tokenizer: Tokenizer, form: str, tools: list[dict[str, Any]] | None, messages: list[dict[str, Any]]
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATES[form], **SPECIAL)
    text = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    prompter = Prompter(tokenizer, ChatTemplate(TEMPLATES[form], SPECIAL), max_length=8192)
    told = None if tools is None else json.dumps(tools).encode()
    assert ChatTemplate(TEMPLATES[form], SPECIAL).render(messages, tools) == text
    assert prompter.from_messages(json.dumps(messages).encode(), told).token_ids.tolist() == ids
    assert prompter.from_messages(json.dumps(as_openai_has_them(messages)).encode(), told).token_ids.tolist() == ids


def as_openai_has_them(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With arguments as text."""
    changed = copy.deepcopy(messages)
    for message in changed:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return changed


def test_a_template_without_tools_is_told_of_them_in_the_system_message() -> None:
    rendered = ChatTemplate(SMOLLM2, {}).render(CHATS[1], [WEATHER, CLOCK])
    head, *turns = rendered.split("<|im_start|>")[1:]
    assert head.startswith("system\nBe brief.\n\n") and json.dumps(WEATHER, ensure_ascii=False) in head
    assert turns[1] == (
        'assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "巴黎"}}\n</tool_call><|im_end|>\n'
    )
    assert turns[2] == 'user\n<tool_response>\n{"sky": "<blue>"}\n</tool_response><|im_end|>\n'
    assert ChatTemplate(SMOLLM2, {}).render(ASKED) == ChatTemplate(SMOLLM2, {}).render(ASKED, None)
    assert (
        ChatTemplate(SMOLLM2, {}).render(ASKED[1:], [CLOCK]).startswith("<|im_start|>system\nYou can call functions.")
    )


def test_fields_that_are_null_are_left_out_as_transformers_leaves_them_out() -> None:
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}"
    rendered = ChatTemplate(source, {}).render([{"role": "user", "content": "x", "name": None, "tool_calls": None}])
    assert rendered == '{"role": "user", "content": "x"}null'


def test_answers_to_calls_made_at_once_are_one_turn() -> None:
    answers = [{"role": "tool", "tool_call_id": f"call0000{n}", "content": f"{n}"} for n in range(2)]
    said = {"role": "assistant", "content": "Well:", "tool_calls": [called("now"), called("now", 1)]}
    rendered = ChatTemplate(SMOLLM2, {}).render([*ASKED, said, *answers])
    block = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert f"assistant\nWell:\n{block}\n{block}<|im_end|>" in rendered
    blocks = "\n".join(f"<tool_response>\n{n}\n</tool_response>" for n in range(2))
    assert f"<|im_start|>user\n{blocks}<|im_end|>\n<|im_start|>assistant\n" in rendered


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ("[", "tools is not JSON: Expecting value"),
        ("[" * 100_000, "tools is not JSON: "),
        ("{}", "tools must be a JSON list of 1 to 128 functions, got an object"),
        ("[]", "tools must be a JSON list of 1 to 128 functions, got 0 of them"),
        (json.dumps([CLOCK] * 129), "tools must be a JSON list of 1 to 128 functions, got 129 of them"),
        (json.dumps([CLOCK] * 2), "tools[1].function.name is 'now', which another tool has, too"),
        ('[{"type": "code"}]', 'tools[0] must be {"type": "function", "function": {"name": ..., "parameters": ...}}'),
        ('[{"type": "function", "function": {"name": "a b"}}]', "tools[0].function.name is 'a b'; it must be 1 to 64"),
        ('[{"type": "function", "function": {}}]', "tools[0].function.name is None; it must be 1 to 64"),
        (
            '[{"type": "function", "function": {"name": "f", "parameters": []}}]',
            "tools[0].function.parameters is a list, not an object",
        ),
        (
            '[{"type": "function", "function": {"name": "f", "title": 1}}]',
            "tools[0].function has the unknown field 'title'; known ones are description, name, parameters, strict",
        ),
    ],
)
def test_malformed_tools(tools: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_tools(tools)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "assistant", "content": None}, "messages[0].content is null; it must be a string"),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content is null; it must be a string"),
        (
            {"role": "user", "content": "x", "tool_calls": [called("f")]},
            "messages[0].tool_calls are of the role 'user'",
        ),
        ({"role": "assistant", "tool_calls": {}}, "messages[0].tool_calls must be a list of at most 128 calls"),
        ({"role": "assistant", "tool_calls": [called("f")] * 129}, "messages[0].tool_calls must be a list of at most"),
        ({"role": "assistant", "tool_calls": [{}]}, 'messages[0].tool_calls[0] must be {"id": ...'),
        ({"role": "assistant", "tool_calls": [called("f g")]}, "messages[0].tool_calls[0].function.name is 'f g'"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[0].tool_call_id must be a string of 1 to 256"),
        ({"role": "user", "content": "x", "name": "n" * 257}, "messages[0].name must be a string of 1 to 256"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments is not JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "messages[0].tool_calls[0].function.arguments is a list; it must be an object, or one written as JSON",
        ),
    ],
)
def test_malformed_turns(tokenizer: Tokenizer, message: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Prompter(tokenizer, ChatTemplate(QWEN, {}), 4096).from_messages(json.dumps([message]).encode())
    assert str(refusal.value).startswith(sentence)


def test_too_deep_schemas_are_the_callers_fault(tokenizer: Tokenizer) -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    tools = f'[{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]'.encode()
    for source in (QWEN, SMOLLM2):
        prompter = Prompter(tokenizer, ChatTemplate(source, {}), 100_000)
        try:
            prompter.from_messages(json.dumps(ASKED).encode(), tools)
        except InvalidRequest as refusal:
            assert "recursion" in str(refusal)


def test_the_door_takes_tools_with_messages_only(tokenizer: Tokenizer) -> None:
    door = RequestPreprocessor(
        Prompter(tokenizer, ChatTemplate(QWEN, {}), 4096), OptionRules(4096, 300, {}), "0123456789abcdef"
    )
    given = {"messages": tensor(json.dumps(ASKED)), "tools": tensor(json.dumps([CLOCK]))}
    admitted = door.admit(given)
    assert b'{"name": "now"}' in tokenizer.decode(admitted.token_ids.tolist()).encode()
    with pytest.raises(InvalidRequest, match="tools go with messages; text_input"):
        door.admit({"text_input": tensor("hi"), "tools": given["tools"]})
    with pytest.raises(InvalidRequest, match=r"tools has \d+ bytes, which cannot fit"):
        door.admit({**given, "tools": tensor("x" * 100_000)})


def tensor(text: str) -> Any:
    return np.array([[text.encode()]], dtype=np.object_)


def test_answers_are_not_shared_between_tools(tokenizer: Tokenizer) -> None:
    """The key of the response cache holds the prompt's tokens, and so the tools; by meaning nothing is shared."""
    prompter = Prompter(tokenizer, ChatTemplate(QWEN, {}), 4096)
    keys = set()
    for tools in (None, [WEATHER], [CLOCK], [WEATHER, CLOCK]):
        told = None if tools is None else json.dumps(tools).encode()
        prompt = prompter.from_messages(json.dumps(ASKED).encode(), told)
        assert (prompt.question is None) == (tools is not None)
        request = Request("r", prompt.token_ids, SamplingOptions(max_tokens=4))
        keys.add(fingerprint("digest", request))
    assert len(keys) == 4


def test_marks_of_calls_are_not_dropped_as_special_tokens(tokenizer: Tokenizer) -> None:
    special = Tokenizer.from_str(tokenizer.to_str())
    marks = ["[TOOL_CALLS]", "<|call|>", "<|called|>", "<|args|>", "<|eot|>", "<|said|>", "<|sep|>"]
    special.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    source = """{%- macro written(call) %}{{ begin }}{{ call.name }}{{ marks.args }}<|eot|>{% endmacro %}
        {%- set marks = namespace(args="<|args|>", sep="<|sep|>") %}{% set begin = '<|call|>' %}
        {%- for message in messages %}
        {%- if message.tool_calls %}{{ written(message.tool_calls[0]) }}<|called|>
        {%- else %}<|said|>{{ message.content }}{{ marks.sep }}<|eot|>{% endif %}
        {%- if not message.tool_calls %}<|said|>{% endif %}{% endfor %}"""
    visible = with_visible_calls(special, source)
    text = "".join(marks)
    ids = special.encode(text).ids
    assert visible.encode(text).ids == ids and len(ids) == 7
    assert special.decode(ids) == "" and visible.decode(ids) == "[TOOL_CALLS]<|call|><|called|><|args|>"
    assert with_visible_calls(special).decode(ids) == "[TOOL_CALLS]"
    assert with_visible_calls(tokenizer, source) is tokenizer
