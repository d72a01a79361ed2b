"""Grammars of answers that call functions, in llguidance's dialect of Lark.

Arguments are held to their JSON Schema, and written as `json.dumps` writes them, which is how chat templates show them.
What the grammars accept, the parsers read back (`parsing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import glm_xml_grammar, hermes, mistral
from .lark import alternatives, joined, json_rule, literal, mark_rule
from .schema import Choice, Tool

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_FIELDS = "name|function|type|id|arguments|parameters"


@dataclass(frozen=True, slots=True)
class _Form:
    """`mark`: before calls, "" for none; `each`: whether before each; `separator`: between calls; `around`: all of
    them."""

    mark: str = ""
    each: bool = True
    separator: str = "\n"
    around: tuple[str, str] = ("", "")


_FORMS = {
    "hermes": _Form(hermes.BEGIN),
    "glm-xml": _Form(hermes.BEGIN),
    "mistral": _Form(mistral.MARK, each=False, separator=", ", around=("[", "]")),
    "mistral-named": _Form(mistral.MARK, separator=""),  # of tokenizers with a token between name and arguments
    "llama": _Form(separator="; "),
    "glm": _Form(),
}


def forced_call_grammar(
    tools: Sequence[Tool],
    choice: Literal["auto", "required"] | Choice,
    form: str,
    *,
    parallel: bool = True,
    tokens: Mapping[str, int] | None = None,
    said: Mapping[str, Any] | None = None,
) -> str:
    """Of answers that are calls: one of the function that `choice` names; where it is "required", one or more of any
    (one where not `parallel`); where it is "auto", these or any text, before the calls, too, if their form has a mark.

    `form`: a name of `parsing.PARSERS`. `tokens`: the marks that the model has as tokens of their own, and their ids.
    `said`: the JSON Schema of an answer without calls, where it is not any text.
    """
    chosen = [tool for tool in tools if not isinstance(choice, Choice) or tool.function.name == choice.function.name]
    assert chosen, "the chosen function is one of the tools"
    marks = tokens or {}
    form = "mistral-named" if form == "mistral" and mistral.ARGUMENTS_MARK in marks else form
    bodies = [
        _body(tool, form, marks, is_held=choice != "auto" or bool(tool.function.strict), is_cut=said is not None)
        for tool in chosen
    ]
    calls = _calls(_FORMS[form], marks, repeated=parallel and not isinstance(choice, Choice))
    rules = ["%llguidance {}"]
    rules += (
        _start_or(form, chosen, marks, calls, said) if choice == "auto" else [f"start: {_marked(form, marks, calls)}"]
    )
    rules += [f"call: {alternatives(f'call_{number}' for number in range(len(chosen)))}"]
    rules += [f"call_{number}: {body}" for number, body in enumerate(bodies)]
    if form == "glm-xml":
        rules += glm_xml_grammar.text_rules(marks)
    return "\n".join(rules) + "\n"


def _start_or(
    form: str, tools: Sequence[Tool], marks: Mapping[str, int], calls: str, said: Mapping[str, Any] | None
) -> list[str]:
    """The rules of an answer that may have calls. `calls`: without the first mark."""
    mark, marked = _FORMS[form].mark, _marked(form, marks, calls)
    if said is not None:
        return [f"start: said | {marked}", f"said: {json_rule(said, strict=True)}"]
    free = f"FREE: /(?s:.+)/ & ~/(?s:{_call_begins(form, tools)})/"
    if not mark:
        return [f"start: FREE? | {marked}", free]
    if mark in marks:
        return [f"start: FREE? | FREE? {marked}", free]
    return [f"start: FREE? | begin {calls}", free, f"begin[suffix={literal(mark)}]: /(?s:.*)/"]


def _marked(form: str, marks: Mapping[str, int], calls: str) -> str:
    mark = _FORMS[form].mark
    return joined(mark_rule(mark, marks), calls) if mark else calls


def _calls(form: _Form, marks: Mapping[str, int], *, repeated: bool) -> str:
    before, after = (literal(text) if text else "" for text in form.around)
    again = mark_rule(form.mark, marks) if form.mark and form.each else ""
    between = literal(form.separator) if form.separator else ""
    more = f"({joined(between, again, 'call')})*" if repeated else ""
    return joined(before, "call", more, after)


def _call_begins(form: str, tools: Sequence[Tool]) -> str:
    """Regular expression of texts with a place where a parser would look for a call."""
    if mark := _FORMS[form].mark:
        return f".*{_escaped(mark)}.*"
    if form == "llama":
        return rf'(.*\n)?\s*\{{\s*"({_FIELDS})".*|.*<\|python_tag\|>.*'
    names = "|".join(tool.function.name for tool in tools)
    return rf"(.*\n)?[ \t]*({names})[ \t\r]*\n.*"


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "[]/|" else character for character in text)


def _body(tool: Tool, form: str, marks: Mapping[str, int], *, is_held: bool, is_cut: bool) -> str:
    """Of one call, after its mark. Not `is_held`: to an object, but not to its schema. `is_cut`: into lexemes as other
    JSON is, that may stand in its place; free text in its place wants one lexeme that it does not begin with."""
    name, schema = tool.function.name, _schema(tool)
    if form == "glm-xml":
        return glm_xml_grammar.body(name, schema, marks, strict=bool(tool.function.strict))
    arguments = json_rule(schema if is_held else {"type": "object"}, strict=bool(tool.function.strict))
    match form:
        case "hermes":
            end = mark_rule(hermes.END, marks)
            return joined(literal(f'\n{{"name": "{name}", "arguments": '), arguments, literal("}\n"), end)
        case "glm":
            return joined(literal(f"{name}\n"), arguments)
        case "mistral-named":
            return joined(literal(name), mark_rule(mistral.ARGUMENTS_MARK, marks), arguments)
    field = "parameters" if form == "llama" else "arguments"
    head = ["{", '"name"', ": ", f'"{name}"', ", ", f'"{field}"', ": "]
    return joined(*map(literal, head if is_cut else ["".join(head)]), arguments, literal("}"))


def _schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    return {"type": "object", **(_NO_ARGUMENTS if parameters is None else parameters)}
