"""Grammars of answers that call functions, in llguidance's dialect of Lark.

Arguments are held to their JSON Schema, and written as the form has it, which is how chat templates show them. What
the grammars accept, the reader reads back (`calls`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import tagged_grammar
from .call_form import NAME, CallForm
from .calls import Marks
from .lark import alternatives, bounded, escaped, joined, json_rule, literal, marked
from .schema import Choice, Tool

How = Literal["auto", "required"] | Choice

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_FIELDS = "name|function|type|id|arguments|parameters"
_LEXEME = re.compile(r'"[^"]*"|[{}\[\]]|[:,] ?|\s+|[^"{}\[\]:,\s]+')


def forced_call_grammar(
    tools: Sequence[Tool],
    choice: How,
    forms: Sequence[CallForm],
    *,
    parallel: bool = True,
    tokens: Mapping[str, int] | None = None,
    said: Mapping[str, Any] | None = None,
) -> str:
    """Of answers that are calls: one of the function that `choice` names; where it is "required", one or more of any
    (one where not `parallel`, or where the form has no more); where it is "auto", these or any text, before the calls,
    too, if their form has a mark.

    `forms`: the first one is held to of those that most of the model's tokens are in. `tokens`: that calls may be made
    of, and their ids. `said`: the JSON Schema of an answer without calls, where it is not any text.
    """
    chosen = [tool for tool in tools if not isinstance(choice, Choice) or tool.function.name == choice.function.name]
    assert chosen, "the chosen function is one of the tools"
    known = tokens or {}
    form = max(forms, key=lambda form: sum(any(token in text for text in form.texts()) for token in known))
    writer = _Writer(form, known, choice, is_cut=said is not None and not Marks.of(form).first)
    calls = bounded(rule for number, tool in enumerate(chosen) for rule in writer.body(number, tool))
    repeated = parallel and not isinstance(choice, Choice)
    rules = ["%llguidance {}", *writer.start(chosen, said, repeated=repeated)]
    rules += [f"call: {alternatives(f'call_{number}' for number in range(len(chosen)))}"]
    return "\n".join([*rules, *calls, *tagged_grammar.value_rules(form, known)]) + "\n"


@dataclass(frozen=True, slots=True)
class _Writer:
    """`is_cut`: calls are cut into lexemes as other JSON is, which may stand in their place; free text in their place
    wants one lexeme that it does not begin with."""

    form: CallForm
    tokens: Mapping[str, int]
    choice: How
    is_cut: bool

    def start(self, tools: Sequence[Tool], said: Mapping[str, Any] | None, *, repeated: bool) -> list[str]:
        calls = self._calls(repeated=repeated)
        opening, _ = self._opened(self.form.opening)
        if self.choice != "auto":
            return [f"start: {joined(self._lead(), self._text(opening), calls)}"]
        if said is not None:
            return [f"start: said | {joined(self._text(opening), calls)}", f"said: {json_rule(said, strict=True)}"]
        mark = Marks.of(self.form).first
        free = f"FREE: /(?s:.+)/ & ~/(?s:{self._call_begins(mark, tools)})/"
        if not mark:
            return [f"start: FREE? | {joined(self._text(opening), calls)}", free]
        if any(mark.startswith(token) for token in self.tokens):
            return [f"start: FREE? | FREE? {joined(self._text(opening), calls)}", free]
        begin = f"begin[suffix={literal(mark)}]: /(?s:.*)/"
        return [f"start: FREE? | begin {joined(self._text(opening[len(mark) :]), calls)}", free, begin]

    def body(self, number: int, tool: Tool) -> list[str]:
        """The rules of one call."""
        name, schema, strict = tool.function.name, _schema(tool), bool(tool.function.strict)
        _, rest = self._opened(self.form.opening)
        head = rest.replace(NAME, name) + name + self.form.middle.replace(NAME, name)
        rule = f"call_{number}"
        if self.form.tags is not None:
            arguments, others = tagged_grammar.arguments(self.form, schema, rule, self.tokens, strict=strict)
            return [f"{rule}: {joined(self._text(head), arguments)}", *others]
        is_held = self.choice != "auto" or strict
        held = _sorted(schema) if self.form.is_sorted else schema
        arguments = json_rule(held if is_held else {"type": "object"}, strict=strict, spacing=self.form.spacing)
        return [f"{rule}: {joined(self._text(head), arguments)}"]

    def _lead(self) -> str:
        """Where a grammar holds after thinking only, the space after that is left of it."""
        lead = self.form.lead
        parts = dict.fromkeys(part for part in (lead, lead[len(lead.rstrip()) :]) if part)
        return f"({alternatives(marked(part, self.tokens) for part in parts)})?" if parts else ""

    def _calls(self, *, repeated: bool) -> str:
        """After what comes before the first one's name."""
        form, more = self.form, ""
        if repeated and form.between is not None:
            between, rest = self._opened(form.between)
            if rest == self._opened(form.opening)[1]:
                more = f"({joined(self._text(between), 'call')})*"
        return joined("call", more, self._text(form.closing))

    def _opened(self, text: str) -> tuple[str, str]:
        """What stands before the first place of the name, and the rest, which is of each call; of JSON that may not be
        cut, all is of each call, from the object on."""
        at = text.find(NAME)
        if self.is_cut or (not Marks.of(self.form).first and self.form.name_field):
            at = text.rfind("{")
        return (text, "") if at < 0 else (text[:at], text[at:])

    def _text(self, text: str) -> str:
        if not self.is_cut:
            return marked(text, self.tokens)
        return joined(*(marked(part, self.tokens) for part in _LEXEME.findall(text)))

    def _call_begins(self, mark: str, tools: Sequence[Tool]) -> str:
        """Regular expression of texts with a place where a reader would look for a call."""
        also = "".join(f"|.*{escaped(other)}.*" for other in self.form.also)
        if mark:
            firsts = dict.fromkeys(escaped(late.first) for late in Marks.of(self.form).late())
            return f".*({'|'.join(firsts)}).*"
        if self.form.name_field:
            return rf'(.*\n)?\s*\{{\s*"({_FIELDS})".*{also}'
        names = "|".join(tool.function.name for tool in tools)
        return rf"(.*\n)?[ \t]*({names})[ \t\r]*\n.*{also}"


def _schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    return {"type": "object", **(_NO_ARGUMENTS if parameters is None else parameters)}


def _sorted(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return {**schema, "properties": dict(sorted(properties.items()))} if isinstance(properties, Mapping) else {**schema}
