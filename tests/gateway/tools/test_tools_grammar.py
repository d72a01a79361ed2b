"""What the grammars of calls accept, the parsers read back; what is no such call, they do not accept."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from autoglm_engine.tokenizer.artifact_texts import with_visible_calls
from autoglm_gateway.tools.grammar import forced_call_grammar
from autoglm_gateway.tools.named_forms import NAMED
from autoglm_gateway.tools.schema import Choice, Tool
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.gateway.tools.test_tools_parsing import Call
from tests.gateway.tools.test_tools_parsing import parsed as parsed_of

pytestmark = pytest.mark.slow

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": "get_weather", "parameters": CITY, "strict": True}}),
    Tool.model_validate({"type": "function", "function": {"name": "now"}}),
]
NOW = Choice.model_validate({"type": "function", "function": {"name": "now"}})
How = Literal["auto", "required"] | Choice


@dataclass
class Tokens:
    """A byte a token, and the marks of calls where a checkpoint has them."""

    plain: Tokenizer
    guided: LLTokenizer
    marks: dict[str, int]

    @classmethod
    def make(cls, *marks: str) -> Tokens:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens(["</s>", *(mark for mark in marks if mark.startswith("["))])
        made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks if mark.startswith("<")])
        ids = made.get_vocab(with_added_tokens=True)
        guided = LLTokenizer(made.to_str(), eos_token=ids["</s>"])
        return cls(with_visible_calls(made), guided, {mark: ids[mark] for mark in marks})

    def matcher(self, form: str, choice: How, *, parallel: bool = True) -> LLMatcher:
        grammar = forced_call_grammar(TOOLS, choice, NAMED[form], parallel=parallel, tokens=self.marks)
        matcher = LLMatcher(self.guided, grammar)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def fit(self, matcher: LLMatcher, text: str) -> bool:
        ids = self.plain.encode(text).ids
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.fixture(scope="module", params=[(), MARKS], ids=["text", "tokens"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    return Tokens.make(*request.param)


def written(form: str, calls: list[Call]) -> str:
    """As the models are shown it."""
    match form:
        case "hermes":
            return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
        case "llama":
            return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)
        case "glm":
            return "\n".join(f"{n}\n{a}" for n, a in calls)
        case "mistral":
            return "[TOOL_CALLS][" + ", ".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in calls) + "]"
    return "\n".join(f"<tool_call>{n}\n{_tags(json.loads(a))}</tool_call>" for n, a in calls)


def _tags(arguments: dict[str, Any]) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    return "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in values.items())


WEATHER: Call = ("get_weather", '{"city": "Pa\\"ris <b> 天", "unit": "C", "days": [1, 2]}')


@pytest.mark.parametrize("form", NAMED)
def test_what_must_be_called(tokens: Tokens, form: str) -> None:
    def fits(calls: list[Call] | str, choice: How = "required", **changes: bool) -> bool:
        text = calls if isinstance(calls, str) else written(form, calls)
        return tokens.fit(tokens.matcher(form, choice, **changes), text)

    now = ("now", "{}")
    assert fits([WEATHER]) and fits([now, WEATHER, now])
    assert fits([now], parallel=False) and not fits([now, now], parallel=False)
    assert fits([now], NOW) and not fits([now, now], NOW) and not fits([WEATHER], NOW)
    assert not fits("") and not fits("Hello") and not fits([("later", "{}")])
    assert not fits([("get_weather", "{}")]) and not fits([("now", '{"a": 1}')])
    assert not fits([("get_weather", '{"city": "x", "days": [10]}')])
    assert not fits([("get_weather", '{"city": "x", "unit": "K", "days": []}')])


@pytest.mark.parametrize("form", NAMED)
def test_where_nothing_must_be_called_text_is_free_and_strict_calls_are_held(tokens: Tokens, form: str) -> None:
    def fits(text: str) -> bool:
        return tokens.fit(tokens.matcher(form, "auto"), text)

    now, wrong = ("now", "{}"), ("get_weather", '{"city": "x", "days": [10]}')
    assert fits("Hello,\nWorld <tool> [TOOL] {}") and fits("") and fits(written(form, [now, WEATHER]))
    assert not fits(written(form, [wrong])) and not fits("Hello\n" + written(form, [wrong]))
    assert fits("Hello\n" + written(form, [now])) == (form not in ("llama", "glm"))
    if form != "glm-xml":  # whose arguments are always those of the schema
        assert fits(written(form, [("now", '{"not": "strict"}')]))


@pytest.mark.parametrize("form", NAMED)
def test_what_is_said_may_have_a_schema_of_its_own(tokens: Tokens, form: str) -> None:
    answer = {"name": {"type": "string"}, "answer": {"type": "integer"}}
    said = {"type": "object", "properties": answer, "required": ["answer"]}
    grammar = forced_call_grammar(TOOLS, "auto", NAMED[form], tokens=tokens.marks, said=said)
    for text, fits in (
        ('{"answer": 42}', True),
        ('{"name": "now", "answer": 42}', True),
        ('{"name": "now"}', False),
        (written(form, [("now", "{}"), WEATHER]), True),
        ('{"answer": "none"}', False),
        ("Hello", False),
        ("", False),
    ):
        assert tokens.fit(LLMatcher(tokens.guided, grammar), text) == fits, text


@pytest.mark.parametrize("form", NAMED)
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_random_answers_are_read_back(tokens: Tokens, form: str, choice: How) -> None:
    schemas = {tool.function.name: tool.function.parameters or {} for tool in TOOLS}
    complete = 0
    for seed in range(12):
        ids = random_answer(tokens, tokens.matcher(form, choice), seed)
        if ids is None:
            continue
        complete += 1
        text = tokens.plain.decode(ids, skip_special_tokens=True)
        said, calls = parsed_of(form, [text], functions=schemas)
        assert calls or choice == "auto", text
        assert not said or choice == "auto", (said, text)
        for name, arguments in calls:
            if choice == "required" or name == "get_weather":
                Draft202012Validator(schemas[name]).validate(json.loads(arguments))
    assert complete >= 4


def random_answer(tokens: Tokens, matcher: LLMatcher, seed: int, most: int = 500) -> list[int] | None:
    """None where it did not end in time. What ends strings and lists is likelier than chance has it."""
    draw = random.Random(seed)
    ends = [tokens.plain.token_to_id(token) for token in ('"', "]", "}", "<", "</arg_value>")]
    ids: list[int] = []
    while len(ids) < most:
        if matcher.is_stopped() or (matcher.is_accepting() and draw.random() < 0.3):
            return ids
        bits = matcher.compute_bitmask()
        allowed = [
            i for i in range(tokens.guided.vocab_size) if bits[i // 8] >> (i % 8) & 1 and i != tokens.guided.eos_token
        ]
        if not allowed:
            return ids
        likely = [i for i in ends if i in allowed]
        ids.append(draw.choice(likely if likely and draw.random() < 0.3 else allowed))
        assert matcher.consume_token(ids[-1])
    return None


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_newer_mistral_models_write_names_before_a_token(choice: How) -> None:
    newer = Tokens.make(*MARKS, "[ARGS]")
    calls = [("now", "{}"), WEATHER]
    text = "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
    assert newer.fit(newer.matcher("mistral", choice), text)
    assert not newer.fit(newer.matcher("mistral", choice), written("mistral", calls))
    assert parsed_of("mistral", [text]) == ("", calls)


def test_a_schema_that_cannot_be_kept_is_refused_where_it_is_strict(tokens: Tokens) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict in (False, True):
        tool = Tool.model_validate(
            {"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}
        )
        complaint = LLMatcher.validate_grammar(forced_call_grammar([tool], "required", NAMED["hermes"]), tokens.guided)
        assert ("uniqueItems" in complaint) == strict


def test_a_schema_that_is_none_makes_no_grammar_but_no_failure_either() -> None:
    for parameters in ({"properties": [], "required": 5}, {"properties": {"a": True, "b": {"enum": 3}}}):
        tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": parameters}})
        for form in NAMED:
            assert forced_call_grammar([tool], "required", NAMED[form]).startswith("%llguidance")
