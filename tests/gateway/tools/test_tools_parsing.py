"""Calls in an answer's text: each family's form, whole and cut anywhere, right and broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from autoglm_gateway.tools.events import Arguments, Called, Functions, Said
from autoglm_gateway.tools.json_scanner import JsonScanner
from autoglm_gateway.tools.named_forms import NAMED
from autoglm_gateway.tools.parsing import CallParser
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.gateway.call_round_trip import joined

pytestmark = pytest.mark.slow

FUNCTIONS: dict[str, dict[str, Any]] = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "get": {"type": "object", "properties": {"city": {"type": "string"}}},
    "now": {},
}
Call = tuple[str, str]  # name, arguments


def parsed(
    form: str, pieces: Sequence[str], max_calls: int | None = None, functions: Functions = FUNCTIONS
) -> tuple[str, list[Call]]:
    """Text, and calls."""
    parser = CallParser(NAMED[form], functions, max_calls)
    events = [event for piece in pieces for event in parser.push(piece)]
    return joined([*events, *parser.close()])


PARIS = '{"city": "Paris"}'
CASES = [
    (
        "hermes",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>',
        "",
        [("get_weather", PARIS)],
    ),
    (
        "hermes",
        (
            f'Let me see.\n<tool_call>{{"name": "get", "arguments": '
            f'{PARIS}}}</tool_call>\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>\n'
        ),
        "Let me see.",
        [("get", PARIS), ("now", "{}")],
    ),
    ("hermes", f'<tool_call>{{"arguments": {PARIS}, "name": "get"}}</tool_call> then', "then", [("get", PARIS)]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"city\\": 1}"}</tool_call>', "", [("get", '{"city": 1}')]),
    (
        "hermes",
        f'<tool_call>{{"id": "x", "name": "get", "arguments": {PARIS}, "type": "function"}}</tool_call>',
        "",
        [("get", PARIS)],
    ),
    ("llama", f'{{"name": "get_weather", "parameters": {PARIS}}}', "", [("get_weather", PARIS)]),
    (
        "llama",
        f'<|python_tag|>{{"name": "get", "parameters": {PARIS}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [("get", PARIS), ("now", "{}")],
    ),
    (
        "llama",
        f'I look.\n{{"type": "function", "function": "get", "parameters": {PARIS}}}\ndone\n',
        "I look.done\n",
        [("get", PARIS)],
    ),
    ("llama", f'Hm <|python_tag|>{{"name": "get", "parameters": {PARIS}}}', "Hm", [("get", PARIS)]),
    ("glm", f"get_weather\n{PARIS}", "", [("get_weather", PARIS)]),
    ("glm", f"\nI look.\nget \n {PARIS}now\n{{}}\n", "\nI look.", [("get", PARIS), ("now", "{}")]),
    (
        "glm-xml",
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris "
            '"8e"</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>'
        ),
        "",
        [("get_weather", '{"city": "Paris \\"8e\\"", "days": 3}')],
    ),
    (
        "glm-xml",
        (
            "So:\n<tool_call>now</tool_call>\n<tool_call>now\n<arg_key>a</arg_key><arg_value>[1, "
            "{}]</arg_value><arg_key>b</arg_key><arg_value>NaN</arg_value></tool_call>"
        ),
        "So:",
        [("now", "{}"), ("now", '{"a": [1, {}], "b": "NaN"}')],
    ),
    (
        "glm-xml",
        "<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>12</arg_value></tool_call>",
        "",
        [("get", '{"city": "12"}')],
    ),
    (
        "mistral",
        (
            f'[TOOL_CALLS] [{{"name": "get", "arguments": {PARIS}}}, {{"name": "now", "arguments": {{}}, "id": '
            f'"abcdefghi"}}]'
        ),
        "",
        [("get", PARIS), ("now", "{}")],
    ),
    (
        "mistral",
        f"Well.[TOOL_CALLS]get[ARGS]{PARIS}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}",
        "Well.",
        [("get", PARIS), ("now", "{}")],
    ),
    ("mistral", f"[TOOL_CALLS]get{PARIS}", "", [("get", PARIS)]),
]
BROKEN = [
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "extra": 1}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": now}</tool_call> '),
    ("hermes", '<tool_call>{"name": "now"'),
    ("hermes", "a <tool_call> b <tool_ca"),
    ("hermes", '{"name": "now", "arguments": {}}'),
    ("hermes", f'<tool_call>{{"name": "get", "arguments": {"9" * 5000}}}</tool_call>'),
    ("llama", '{"name": "unknown", "parameters": {}}'),
    ("llama", 'see {"name": "now", "parameters": {}}'),
    ("llama", '{"city": "Paris"}\n{}\n[1]\n'),
    ("llama", "<|python_tag|>print(1)"),
    ("llama", "<|python_tag|>  "),
    ("llama", "  \n"),
    ("glm", "unknown\n{}"),
    ("glm", "now\nand then\nget"),
    ("glm", "get_wea"),
    ("glm-xml", "<tool_call>unknown</tool_call>"),
    ("glm-xml", "<tool_call>now or never</tool_call>"),
    ("glm-xml", "<tool_call>now "),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] []"),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]now[ARGS]"),
    ("mistral", "[TOOL_CALLS]now[ARGS]1"),
]


@pytest.mark.parametrize(("form", "text", "said", "calls"), CASES)
def test_calls_are_told_however_the_text_is_cut(form: str, text: str, said: str, calls: list[Call]) -> None:
    assert parsed(form, [text]) == (said, calls)
    assert parsed(form, list(text)) == (said, calls)
    for cut in range(len(text)):
        assert parsed(form, [text[:cut], text[cut:]]) == (said, calls)


@pytest.mark.parametrize(("form", "text"), BROKEN)
def test_what_is_no_call_stays_text(form: str, text: str) -> None:
    assert parsed(form, [text]) == (text, [])
    assert parsed(form, list(text)) == (text, [])


@pytest.mark.parametrize(
    ("form", "text", "said", "call"),
    [
        (
            "hermes",
            '<tool_call>{"name": "get", "arguments": {"city": Paris}}</tool_call>',
            "Paris}}</tool_call>",
            ("get", '{"city": '),
        ),
        ("hermes", '<tool_call>{"name": "get", "arguments": {"city": "Pa', "", ("get", '{"city": "Pa')),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}, oh}</tool_call>', ", oh}</tool_call>", ("now", "{}")),
        ("glm", 'get\n{"city": 01}', "}", ("get", '{"city": 01')),
        ("glm-xml", "<tool_call>get\n<arg_key>city</arg_key><arg_value>Pa", "", ("get", '{"city": "Pa')),
        ("glm-xml", "<tool_call>now\n<arg_key>a</arg_key><arg_value>1</arg_value>b", "b", ("now", '{"a": 1')),
        ("mistral", "[TOOL_CALLS]get[ARGS]{]", "]", ("get", "{")),
    ],
)
def test_arguments_that_break_off_are_not_made_whole(form: str, text: str, said: str, call: Call) -> None:
    assert parsed(form, [text]) == parsed(form, list(text)) == (said, [call])


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(NAMED["hermes"], FUNCTIONS)
    pieces = [
        "Hm",
        " <tool",
        '_call>{"name": "get',
        '", "arguments": ',
        '{"city"',
        ': "Par',
        'is"}',
        "}",
        "</tool_call>",
    ]
    events = [parser.push(piece) for piece in pieces]
    assert events == [
        [Said("Hm")],
        [],
        [],
        [],
        [Called("get"), Arguments('{"city"')],
        [Arguments(': "Par')],
        [Arguments('is"}')],
        [],
        [],
    ]
    assert parser.close() == []


def test_no_more_calls_than_wanted() -> None:
    one = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert parsed("hermes", [one, one, " well"], max_calls=1) == ("well", [("now", "{}")])


@pytest.mark.parametrize(
    ("schema", "value", "read"),
    [
        ({"type": "string"}, "17", '"17"'),
        ({"type": ["string", "null"]}, "17", '"17"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["number", "string"]}, "17", "17"),
        ({"enum": ["17", "18"]}, "17", '"17"'),
        ({"type": "integer"}, "many", '"many"'),
        ({}, "17", "17"),
        ({}, "True", '"True"'),
    ],
)
def test_a_value_in_a_tag_is_of_the_types_that_its_schema_allows(schema: dict[str, Any], value: str, read: str) -> None:
    text = f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"
    functions = {"f": {"properties": {"a": schema}}}
    assert parsed("glm-xml", [text], functions=functions) == ("", [("f", f'{{"a": {read}}}')])


SCRAPS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "[",
    "]",
    "{",
    "}",
    ",",
    ";",
    ":",
    '"',
    "\\",
    "\n",
    " ",
    "get",
    "now",
    "get_weather",
    "city",
    '"name"',
    '"arguments"',
    '"parameters"',
    '"get"',
    PARIS,
    f'{{"name": "get", "arguments": {PARIS}}}',
    "1",
    "é",
    '{"name": "now", "parameters": ',
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(SCRAPS) | st.text(max_size=3), max_size=20).map("".join),
    st.lists(st.sampled_from([case[1] for case in CASES] + [case[1] for case in BROKEN]), max_size=3).map("".join),
)


@pytest.mark.parametrize("form", NAMED)
@settings(max_examples=60)
@given(text=TEXTS, data=st.data())
def test_streamed_is_whole(form: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parsed(form, pieces) == parsed(form, [text])


@pytest.mark.parametrize("form", NAMED)
@settings(max_examples=60)
@given(text=TEXTS)
def test_nothing_is_lost(form: str, text: str) -> None:
    """But for a call's name, marks and fields, and for space."""
    said, calls = parsed(form, [text])
    if not calls:
        assert said == text
    assert all(name in FUNCTIONS for name, _ in calls)
    told = said + "".join(arguments for _, arguments in calls)
    marks = 90 * len(calls) + 50 * told.count('": ') * (form == "glm-xml")
    assert len("".join(text.split())) <= len("".join(told.split())) + marks


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.dictionaries(st.text(), JSON), indent=st.sampled_from([None, 2]), ascii_=st.booleans())
def test_the_scanner_finds_the_end_of_json(value: Any, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    for scanner, pieces in ((JsonScanner(), [text + "}x"]), (JsonScanner(), [*text, "}x"])):
        used = 0
        for piece in pieces:
            used += scanner.feed(piece)
        assert scanner.done and not scanner.broken and used == len(text)


@given(text=st.text(alphabet='{}[]",:\\u0123456789abtrefnlsE.+- \n', max_size=12).map(lambda t: "{" + t))
def test_the_scanner_accepts_what_python_accepts(text: str) -> None:
    scanner = JsonScanner()
    used = scanner.feed(text)
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        assert scanner.done and used == end
    except ValueError:
        assert not scanner.done


@given(
    calls=st.lists(st.tuples(st.sampled_from(["get", "now"]), st.dictionaries(st.text(), JSON, max_size=3)), max_size=3)
)
def test_any_arguments_come_back(calls: list[tuple[str, dict[str, Any]]]) -> None:
    blocks = [
        f"<tool_call>\n{json.dumps({'name': n, 'arguments': a}, ensure_ascii=False)}\n</tool_call>" for n, a in calls
    ]
    said, found = parsed("hermes", ["\n".join(blocks)])
    assert not said and [(name, json.loads(arguments)) for name, arguments in found] == calls
    rows = [json.dumps({"name": n, "parameters": a}) for n, a in calls]
    assert [(n, json.loads(a)) for n, a in parsed("llama", ["; ".join(rows)])[1]] == calls
    assert [
        (n, json.loads(a)) for n, a in parsed("glm", ["".join(f"{n}\n{json.dumps(a)}" for n, a in calls)])[1]
    ] == calls
