"""How one request uses tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autoglm_client import GenerationOptions, ModelLimits

from autoglm_gateway.errors import ApiError, unsupported

from .call_form import CallForm
from .events import Functions
from .grammar import forced_call_grammar
from .lark import bounded
from .named_forms import NAMED
from .parsing import CallParser
from .schema import Choice, Tool, ToolOptions

AUTO = "auto"
MAX_DEPTH = 100  # of a schema: objects and lists in one another


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`tools`: what may be called; `forms`: how the model writes calls; `tokens`: those that they are made of, and
    their ids; `parallel`: more than one call may be in one answer."""

    tools: Sequence[Tool]
    choice: Literal["auto", "required"] | Choice
    forms: Sequence[CallForm]
    tokens: Mapping[str, int]
    parallel: bool = True

    @property
    def functions(self) -> Functions:
        return _functions(self.tools)

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the model's template gets."""
        return [_told(tool) for tool in self.tools]

    @property
    def short_ids(self) -> bool:
        """The model's template takes ids of 9 letters and digits, and no others."""
        return self.forms[0].short_ids

    def parser(self) -> CallParser:
        """A template with room for one call would refuse more of them in the history."""
        has_more = self.parallel and any(form.between is not None for form in self.forms)
        return CallParser(self.forms, self.functions, None if has_more else 1)

    def applied(self, options: GenerationOptions) -> GenerationOptions:
        """Raises ApiError where the answer has a form that leaves no place for calls."""
        for guide in ("guided_regex", "guided_grammar"):
            if getattr(options, guide) is not None:
                sentence = f"tools and {guide} exclude each other, unless tool_choice is none"
                raise ApiError(400, sentence, param="tools", code="invalid_value")
        said = None if options.guided_json is None else _schema(options.guided_json)
        _check_depth(said, "guided_json")
        return options.with_changes({"tools": self.told, "guided_grammar": self._grammar(said), "guided_json": None})

    def _grammar(self, said: Mapping[str, Any] | None) -> str | None:
        """None where nothing is held to."""
        if self.choice == "auto" and said is None and not any(tool.function.strict for tool in self.tools):
            return None
        grammar = forced_call_grammar(
            self.tools, self.choice, self.forms, parallel=self.parallel, tokens=self.tokens, said=said
        )
        return bounded([grammar])[0]


def tool_use(request: ToolOptions, setting: str, limits: ModelLimits) -> ToolUse | None:
    """None where no function can be called. `setting`: a form, or "auto" for the one of the model. Raises ApiError."""
    if request.tools is None:
        _refuse_without_tools(request)
        return None
    functions = _functions(request.tools)
    _check_names(request, functions)
    for number, tool in enumerate(request.tools):
        _check_depth(tool.function.parameters, f"tools[{number}].function.parameters")
    choice = request.tool_choice or "auto"
    if choice == "none":
        return None
    forms = _forms(setting, limits.call_form)
    return ToolUse(request.tools, choice, forms, limits.call_tokens, request.parallel_tool_calls is not False)


def _functions(tools: Sequence[Tool]) -> Functions:
    return {tool.function.name: tool.function.parameters or {} for tool in tools}


def _schema(said: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if not isinstance(said, str):
        return said
    try:
        read = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"guided_json is not JSON: {error}", param="guided_json", code="invalid_value") from None
    if not isinstance(read, dict):
        raise ApiError(400, "guided_json must be an object beside tools", param="guided_json", code="invalid_value")
    return read


def _told(tool: Tool) -> dict[str, Any]:
    """Not `strict`: it is no matter of the model."""
    function = {name: getattr(tool.function, name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _forms(setting: str, found: Mapping[str, Any] | None) -> Sequence[CallForm]:
    if setting != AUTO:
        return NAMED[setting]
    if found is None:
        why = f"how this model calls functions is not known; the setting tool_format says it: {', '.join(NAMED)}"
        raise unsupported("tools", why)
    return (CallForm.of(found),)


def _refuse_without_tools(request: ToolOptions) -> None:
    for name in ("tool_choice", "parallel_tool_calls"):
        if getattr(request, name) is not None:
            raise ApiError(400, f"{name} needs tools", param=name, code="invalid_value")


def _check_names(request: ToolOptions, functions: Functions) -> None:
    if len(functions) < len(request.tools or ()):
        raise ApiError(400, "two of the tools have one name: each needs its own", param="tools", code="invalid_value")
    choice = request.tool_choice
    if isinstance(choice, Choice) and choice.function.name not in functions:
        sentence = f"tool_choice names {choice.function.name!r}, which is not among the tools"
        raise ApiError(400, sentence, param="tool_choice", code="invalid_value")


def _check_depth(value: Any, name: str) -> None:
    """Deeper ones end Python's recursion somewhere on their way."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        sentence = f"{name} nests deeper than {MAX_DEPTH} levels"
        raise ApiError(400, sentence, param=name, code="invalid_value")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
