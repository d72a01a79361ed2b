"""How one request uses tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoglm_client import GenerationOptions, ModelLimits

from autoglm_gateway.errors import ApiError, unsupported

from .events import Functions
from .grammar import forced_call_grammar
from .parsing import PARSERS, CallParser
from .schema import Choice, Tool, ToolOptions

AUTO = "auto"
MAX_DEPTH = 100  # of a schema: objects and lists in one another


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`told`: what the model is told of; `form`: how it writes its calls; `most_calls`: in one answer, None for any;
    `grammar`: what the answer must keep to, None for nothing."""

    told: Sequence[dict[str, Any]]
    functions: Functions
    form: str
    most_calls: int | None = None
    grammar: str | None = None

    def parser(self) -> CallParser:
        return CallParser(self.form, self.functions, self.most_calls)

    def applied(self, options: GenerationOptions) -> GenerationOptions:
        """Raises ApiError where the answer has a form already."""
        for guide in ("guided_json", "guided_regex", "guided_grammar"):
            if getattr(options, guide) is not None:
                sentence = f"tools and {guide} (or response_format) exclude each other, unless tool_choice is none"
                raise ApiError(400, sentence, param="tools", code="invalid_value")
        return options.with_changes({"tools": self.told, "guided_grammar": self.grammar})


def tool_use(request: ToolOptions, setting: str, limits: ModelLimits) -> ToolUse | None:
    """None where no function can be called. `setting`: a form, or "auto" for the one of the model. Raises ApiError."""
    if request.tools is None:
        _refuse_without_tools(request)
        return None
    functions = {tool.function.name: tool.function.parameters or {} for tool in request.tools}
    _check_names(request, functions)
    _check_depth(functions)
    if request.tool_choice == "none":
        return None
    form = _form(setting, limits.tool_format)
    return ToolUse(
        told=[_told(tool) for tool in request.tools],
        functions=functions,
        form=form,
        most_calls=1 if request.parallel_tool_calls is False else None,
        grammar=_grammar(request.tools, request, form, limits.call_tokens),
    )


def _grammar(tools: Sequence[Tool], request: ToolOptions, form: str, tokens: Mapping[str, int]) -> str | None:
    choice = request.tool_choice or "auto"
    if choice == "none" or (choice == "auto" and not any(tool.function.strict for tool in tools)):
        return None
    return forced_call_grammar(tools, choice, form, parallel=request.parallel_tool_calls is not False, tokens=tokens)


def _told(tool: Tool) -> dict[str, Any]:
    """Not `strict`: it is no matter of the model."""
    function = {name: getattr(tool.function, name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _form(setting: str, model_form: str) -> str:
    form = model_form if setting == AUTO else setting
    if form not in PARSERS:
        why = f"how this model calls functions is not known; the setting tool_format says it: {', '.join(PARSERS)}"
        raise unsupported("tools", why)
    return form


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


def _check_depth(functions: Functions) -> None:
    """Deeper ones end Python's recursion somewhere on their way."""
    for number, schema in enumerate(functions.values()):
        level: list[Any] = [schema]
        for _ in range(MAX_DEPTH):
            level = [inner for value in level for inner in _inside(value)]
        if level:
            name = f"tools[{number}].function.parameters"
            raise ApiError(400, f"{name} nests deeper than {MAX_DEPTH} levels", param=name, code="invalid_value")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
