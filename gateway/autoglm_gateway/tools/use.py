"""How one request uses tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoglm_gateway.errors import ApiError, unsupported

from .events import Functions
from .parsing import PARSERS, CallParser
from .schema import Choice, Tool, ToolOptions

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`told`: what the model is told of; `form`: how it writes its calls; `most_calls`: in one answer, None for any."""

    told: Sequence[dict[str, Any]]
    functions: Functions
    form: str
    most_calls: int | None = None

    def parser(self) -> CallParser:
        return CallParser(self.form, self.functions, self.most_calls)


def tool_use(request: ToolOptions, setting: str, model_form: str) -> ToolUse | None:
    """None where no function can be called. `setting`: a form, or "auto" for the one of the model. Raises ApiError."""
    if request.tools is None:
        _refuse_without_tools(request)
        return None
    told = [tool.model_dump(exclude_none=True) for tool in request.tools]
    functions = {tool.function.name: tool.function.parameters or {} for tool in request.tools}
    _check_names(request.tools, functions)
    if request.tool_choice == "none":
        return None
    if request.tool_choice not in (None, "auto"):
        _check_forced(request.tool_choice, functions)
    _check_strict(request.tools)
    form = _form(setting, model_form)
    return ToolUse(told, functions, form, 1 if request.parallel_tool_calls is False else None)


def _form(setting: str, model_form: str) -> str:
    form = model_form if setting == AUTO else setting
    if form not in PARSERS:
        raise unsupported(
            "tools",
            f"how this model calls functions is not known; the setting tool_format says it: {', '.join(PARSERS)}",
        )
    return form


def _refuse_without_tools(request: ToolOptions) -> None:
    for name in ("tool_choice", "parallel_tool_calls"):
        if getattr(request, name) is not None:
            raise ApiError(400, f"{name} needs tools", param=name, code="invalid_value")


def _check_names(tools: Sequence[Tool], functions: Functions) -> None:
    if len(functions) < len(tools):
        raise ApiError(400, "two of the tools have one name: each needs its own", param="tools", code="invalid_value")


def _check_forced(choice: str | Choice | None, functions: Functions) -> None:
    """A call that must come needs a grammar of the answer (`grammar.forced_call_grammar`)."""
    if isinstance(choice, Choice) and choice.function.name not in functions:
        sentence = f"tool_choice names {choice.function.name!r}, which is not among the tools"
        raise ApiError(400, sentence, param="tool_choice", code="invalid_value")
    raise unsupported("tool_choice", "this server cannot force a call yet; it takes auto and none")


def _check_strict(tools: Sequence[Tool]) -> None:
    for index, tool in enumerate(tools):
        if tool.function.strict:
            name = f"tools[{index}].function.strict"
            raise unsupported(name, "this server cannot hold arguments to their schema yet")
