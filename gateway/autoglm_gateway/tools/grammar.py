"""Grammars of answers that call functions, in llguidance's dialect of Lark.

Arguments are held to their JSON Schema, and written as `json.dumps` writes them, which is how chat templates show them.
What the grammars accept, the parsers read back (`parsing`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .glm_xml_grammar import xml_call
from .schema import Choice, Tool

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}

Rules = Callable[[Tool], str]  # the rule of one call


def forced_call_grammar(tools: Sequence[Tool], choice: str | Choice, form: str, *, parallel: bool = True) -> str:
    """Of answers that are calls and nothing else: one of the function that `choice` names, or, where it is "required", one
    or more of any (one where not `parallel`). `form`: a name of `parsing.PARSERS`."""
    chosen = [tool for tool in tools if isinstance(choice, str) or tool.function.name == choice.function.name]
    assert chosen, "the chosen function is one of the tools"
    repeated = parallel and isinstance(choice, str)
    calls = " | ".join(f"call_{number}" for number in range(len(chosen)))
    rules = [f"call_{number}: {_call(tool, form)}" for number, tool in enumerate(chosen)]
    return (
        "\n".join(["%llguidance {}", *_starts(form, repeated), f"call: {calls}", *rules, *_SHARED.get(form, ())]) + "\n"
    )


def arguments_schema(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters
    return {"type": "object", **(_NO_ARGUMENTS if parameters is None else parameters)}


def json_rule(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _LAYOUT}, ensure_ascii=False)}"


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_SEPARATORS = {"hermes": "\n", "llama": "; ", "glm": "\n", "glm-xml": "\n"}
_SHARED = {"glm-xml": ('text[suffix="</arg_value>"]: /(?s:.*)/',)}


def _starts(form: str, repeated: bool) -> list[str]:
    if form != "mistral":
        return [f"start: call ({literal(_SEPARATORS[form])} call)*" if repeated else "start: call"]
    return [
        'start: "[TOOL_CALLS][" call (", " call)* "]"' if repeated else 'start: "[TOOL_CALLS][" call "]"',
    ]


def _call(tool: Tool, form: str) -> str:
    name, arguments = tool.function.name, arguments_schema(tool)
    match form:
        case "hermes":
            head, tail = f'<tool_call>\n{{"name": "{name}", "arguments": ', "}\n</tool_call>"
        case "llama":
            head, tail = f'{{"name": "{name}", "parameters": ', "}"
        case "mistral":
            head, tail = f'{{"name": "{name}", "arguments": ', "}"
        case "glm":
            head, tail = f"{name}\n", ""
        case _:
            return xml_call(name, arguments, json_rule, literal)
    return " ".join([literal(head), json_rule(arguments), *([literal(tail)] if tail else [])])
