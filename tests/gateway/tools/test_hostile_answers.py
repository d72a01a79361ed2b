"""Answers and schemas that were made to harm: reading them and holding to them takes time by their length."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.tools.call_form import PLAIN_TEXT
from autoglm_gateway.errors import ApiError
from autoglm_gateway.tools.call_form import TYPES, CallForm, Tags
from autoglm_gateway.tools.grammar import forced_call_grammar
from autoglm_gateway.tools.literals import as_json
from autoglm_gateway.tools.named_forms import NAMED
from autoglm_gateway.tools.parsing import CallParser
from autoglm_gateway.tools.reader import Broken, Reader
from autoglm_gateway.tools.schema import Tool
from llguidance import LLMatcher, LLTokenizer

from tests.gateway.tools.test_tools_parsing import joined

_LITERAL = Tags("", tuple((kind, "=") for kind in TYPES), "", ", ", "'", python=TYPES, is_literal=True)
PYTHONIC = CallForm("<call>[", "(", ")]", "), ", tags=_LITERAL)
RAW = replace(PYTHONIC, tags=replace(_LITERAL, is_raw=True))
A_CALL = {"get": {"type": "object", "properties": {"a": {"type": "string"}}}}
REFERENCE = {"$ref": "#/$defs/a"}


class CountedText(str):
    """Counts the characters that are searched."""

    searched = 0

    def find(self, mark: str, at: Any = 0, *others: Any) -> int:
        found = super().find(mark, at, *others)
        CountedText.searched += (found if found >= 0 else len(self)) - at
        return found

    def __getitem__(self, place: Any) -> str:
        return CountedText(super().__getitem__(place))


@pytest.mark.parametrize(
    ("form", "call"),
    [
        (NAMED["glm-xml"][0], "<tool_call>get\n<arg_key>"),
        (NAMED["glm-xml"][0], "<tool_call>get\n<arg_key>b</arg_key>\n<arg_value>"),
        (RAW, "<call>[get(a='x' y"),
    ],
)
def test_calls_without_end_are_searched_for_it_once(form: CallForm, call: str) -> None:
    searched = []
    for count in (50, 200):
        parser = CallParser([form], A_CALL)
        parser._reader.text, CountedText.searched = CountedText(call * count), 0
        _, calls = joined(parser.close())
        assert len(calls) == count
        searched.append(CountedText.searched)
    assert searched[1] < 6 * searched[0], "four times as long"


def test_what_one_search_missed_another_from_before_finds() -> None:
    reader = Reader()
    reader.text, reader.ended = "a, b", True
    assert [_ended(reader, mark, at) for mark, at in ((",", 2), (",", 3), (",", 0), ("b", 2))] == [None, None, 1, 3]


def _ended(reader: Reader, mark: str, at: int) -> int | None:
    steps = reader.find(mark, at)
    try:
        next(steps)
    except StopIteration as done:
        return int(done.value)
    except Broken:
        return None
    raise AssertionError("the text has ended")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'\\ud83d\\ude00'", "\N{GRINNING FACE}"),
        ("{'\\ud83d\\ude00': ['\\ud83d']}", {"\N{GRINNING FACE}": ["\ud83d"]}),
        ("'\\xe9'", "é"),
    ],
)
def test_halves_of_a_pair_that_a_model_escapes_can_be_sent(written: str, value: Any) -> None:
    read = as_json(written, is_python=True)
    assert read is not None
    read.encode()
    assert json.loads(read) == value


@pytest.mark.parametrize("form", [PYTHONIC, NAMED["glm-xml"][0]])
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": REFERENCE}, "$defs": {"a": {"anyOf": [REFERENCE] * 20}}},
        {"properties": {"x": REFERENCE}, "$defs": {"a": {"type": "array", "items": {"anyOf": [REFERENCE] * 9}}}},
        {
            "properties": {"x": REFERENCE},
            "$defs": {"a": {"type": "object", "properties": {f"k{n}": REFERENCE for n in range(20)}}},
        },
        {"properties": {f"p{n}": REFERENCE for n in range(300)}, "$defs": {"a": {"enum": ["v" * 300]}}},
    ],
)
def test_a_schema_that_refers_to_itself_has_a_bounded_grammar(form: CallForm, schema: dict[str, Any]) -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "get", "parameters": schema}})
    try:
        assert len(forced_call_grammar([tool], "required", [form])) < 200_000
    except ApiError as error:
        assert "more than 65,536 bytes" in str(error)


@pytest.mark.parametrize("form", [PYTHONIC, *(forms[0] for forms in NAMED.values())])
def test_required_that_holds_no_names_is_passed_over(form: CallForm) -> None:
    schema = {"properties": {"x": {"type": "object", "properties": {"y": {}}, "required": [[], {}]}}, "required": [{}]}
    tool = Tool.model_validate({"type": "function", "function": {"name": "get", "parameters": schema}})
    assert "get" in forced_call_grammar([tool], "required", [form])


LISTED = (
    "{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}"
    "{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}"
    "{{% for c in m.tool_calls or [] %}}<call>{{{{ c.function.name }}}}\n"
    "{{% for k, v in c.function.arguments | items %}}{argument}{{% endfor %}}{end}{{% endfor %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument", ["{{ k }} {{ v }};", "{{ k }}={{ v }}\n", "{{ k }}{{ v | tojson }}", "<p>{{ k }}</p>{{ v }}"]
)
def test_arguments_that_space_alone_parts_are_told_in_plain_text(argument: str) -> None:
    template = ChatTemplate(LISTED.format(argument=argument, end="</call>"), {})
    try:
        assert template.call_form == PLAIN_TEXT
    finally:
        template.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "</call>"])
def test_calls_that_nothing_closes_end_with_the_text(end: str) -> None:
    template = ChatTemplate(LISTED.format(argument="<p>{{ k }}</p>{{ v }};", end=end), {})
    try:
        form = CallForm.of(template.call_form.told())
    finally:
        template.close()
    answer = f"<call>get\n<p>a</p>x;{end}"
    for text in (answer, answer + answer):
        for pieces in ([text], list(text)):
            parser = CallParser([form], A_CALL)
            events = [event for piece in pieces for event in parser.push(piece)]
            _, calls = joined([*events, *parser.close()])
            assert calls == [("get", '{"a": "x"}')] * text.count("<call>")
    assert not form.closing or joined([*CallParser([form], A_CALL).push(answer[:-3])])[1][0][1] == '{"a": "x"'


@pytest.mark.parametrize("quote", "'\"`|*$/^].")
def test_any_character_can_be_a_quote(quote: str) -> None:
    form = replace(RAW, tags=replace(_LITERAL, quote=quote, is_raw=True))
    schema = {**A_CALL["get"], "required": ["a"]}
    tool = Tool.model_validate({"type": "function", "function": {"name": "get", "parameters": schema}})
    matcher = LLMatcher(LLTokenizer("byte"), forced_call_grammar([tool], "required", [form]))
    answer = f"<call>[get(a={quote}x y{quote})]"
    assert matcher.consume_tokens(list(answer.encode())), matcher.get_error()
    assert matcher.is_accepting()
    assert joined(CallParser([form], A_CALL).push(answer)) == ("", [("get", '{"a": "x y"}')])
