"""Calls of a template: as it renders them, read back, and held to by the grammar of a forced call."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autoglm_engine.errors import EngineError
from autoglm_engine.tokenizer.checkpoint_template import ChatTemplate
from autoglm_engine.tokenizer.rendering.template_options import TemplateOptions
from autoglm_engine.tokenizer.tools.marked_answers import SAID, Answers, Unreadable
from autoglm_gateway.tools.call_form import CallForm
from autoglm_gateway.tools.events import Arguments, Called, Event, Said
from autoglm_gateway.tools.grammar import forced_call_grammar
from autoglm_gateway.tools.parsing import CallParser
from autoglm_gateway.tools.schema import Tool
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Call = tuple[str, Mapping[str, Any]]

_MARK = re.compile(r"<[^<>\s=«»\"]+>|\[[A-Z_]+\]")
AWKWARD = 'say "hi" {there} [x] \\d\nit\'s the second line: 天气 <b>&amp;</b>'
CASES: Mapping[str, tuple[Call, ...]] = {
    "string": (("write", {"text": AWKWARD, "to": "Zoë"}),),
    "numbers": (("count", {"begin": -17, "ratio": 2.5, "end": 0}),),
    "booleans": (("switch", {"on": True, "off": False}),),
    "null": (("clear", {"name": None}),),
    "nested": (("plan", {"steps": [1, "a b", {"done": True}], "where": {"city": "Zürich", "at": [], "in": {}}}),),
    "empty": (("now", {}),),
    "two calls": (("write", {"text": "one", "to": "x"}), ("now", {})),
}
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def _schema(arguments: Mapping[str, Any]) -> dict[str, Any]:
    properties = {key: {"type": TYPES.get(type(value), "null")} for key, value in arguments.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS = {name: _schema(arguments) for calls in CASES.values() for name, arguments in calls}
TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": name, "parameters": schema}})
    for name, schema in SCHEMAS.items()
]


def calls_of(template: ChatTemplate) -> dict[str, str]:
    """The form, what came of reading it, and of its grammar. Each lists what went wrong."""
    form = CallForm.of(json.loads(json.dumps(template.call_form.told())))
    cells = {"form": template.call_form.example()}

    def render(messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool) -> str:
        return template.render(messages, tools, options=TemplateOptions(add_generation_prompt=add_generation_prompt))

    try:
        answers = Answers.of(render, short_ids=form.short_ids, as_text=False)
    except (EngineError, Unreadable) as error:
        return {**cells, "round trip": f"refused: {error!s:.40}", "grammar": "refused"}
    wrong, loose = list[str](), list[str]()
    for name, calls in CASES.items():
        if name == "two calls" and form.between is None:
            continue
        try:
            text = answers.calling(*calls)
        except (EngineError, Unreadable) as error:
            wrong.append(f"{name} ({error!s:.40})")
            continue
        wrong += [] if is_read_back(form, text, calls, "") else [name]
        loose += [] if is_held(form, text) and is_held(form, form.lead + text.lstrip()) else [name]
        loose += [f"{name} is loose"] if is_loose(form, text) else []
    if form.text_first:
        text = answers.calling(*CASES["numbers"], content=SAID)
        wrong += [] if is_read_back(form, text, CASES["numbers"], SAID) else ["text and call"]
    return {**cells, "round trip": ", ".join(wrong) or "right", "grammar": ", ".join(loose) or "right"}


def is_read_back(form: CallForm, text: str, calls: Sequence[Call], said: str) -> bool:
    """In any cutting."""
    whole = read(form, [text])
    if read(form, list(text)) != whole:
        return False
    draw = random.Random(text)
    for _ in range(8):
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(6))
        if read(form, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) != whole:
            return False
    found, called = whole
    try:
        same = [(name, json.loads(arguments)) for name, arguments in called] == [(name, dict(a)) for name, a in calls]
    except ValueError:
        return False
    return same and found.strip() == said


def joined(events: Iterable[Event]) -> tuple[str, list[tuple[str, str]]]:
    """The text beside the calls, and name and arguments of each."""
    said, calls = "", list[tuple[str, str]]()
    for event in events:
        match event:
            case Said(text):
                said += text
            case Called(name):
                calls.append((name, ""))
            case Arguments(text):
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    return said, calls


def read(form: CallForm, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    parser = CallParser((form,), SCHEMAS)
    events = [event for piece in pieces for event in parser.push(piece)]
    return joined([*events, *parser.close()])


@functools.lru_cache(8)
def _guided(form: CallForm, *, has_tokens: bool) -> tuple[Tokenizer, LLTokenizer, str]:
    """`has_tokens`: marks of the form are tokens, every other one special; else a byte is one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    marks = sorted({mark for text in form.texts() for mark in _MARK.findall(text)}) if has_tokens else []
    made.add_special_tokens(["</s>", *marks[::2]])
    made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks[1::2]])
    tokens = {mark: made.token_to_id(mark) for mark in marks}
    grammar = forced_call_grammar(TOOLS, "required", (form,), tokens=tokens)
    return made, LLTokenizer(made.to_str(), eos_token=made.token_to_id("</s>")), grammar


def is_held(form: CallForm, text: str) -> bool:
    """Whether a forced call may be this text, and end there."""
    return all(_fits(form, text, has_tokens=has_tokens) for has_tokens in (False, True))


def _fits(form: CallForm, text: str, *, has_tokens: bool) -> bool:
    plain, guided, grammar = _guided(form, has_tokens=has_tokens)
    matcher = LLMatcher(guided, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = plain.encode(text).ids
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


def is_loose(form: CallForm, text: str) -> bool:
    """Whether it may end before, or go on, or be another function's."""
    begun = next(name for name in SCHEMAS if name in text)
    others = (text[:-1], text + "x", text.replace(begun, "unknown"))
    return any(_fits(form, other, has_tokens=has_tokens) for other in others for has_tokens in (False, True))
