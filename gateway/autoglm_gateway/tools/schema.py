"""What requests say of tools, as OpenAI's API has it. A field that is not named here is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from autoglm_gateway.strict import Items, Strict

MAX_TOOLS = 128
MAX_CALLS = 128  # of one message

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Id = Annotated[str, Field(min_length=1, max_length=256)]


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: FunctionName


class Choice(Strict):
    type: Literal["function"]
    function: ChosenFunction


class CalledFunction(Strict):
    name: FunctionName
    arguments: str


class Call(Strict):
    id: Id
    type: Literal["function"]
    function: CalledFunction


class ToolOptions(Strict):
    """Of a request."""

    tools: Annotated[Items[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None


class ToolTurn(Strict):
    """Of a message: what the assistant called, or which call it answers."""

    tool_calls: Annotated[Items[Call], Field(min_length=1, max_length=MAX_CALLS)] | None = None
    tool_call_id: Id | None = None
