"""Fields that routers add to every request (vLLM's, SGLang's), accepted where they ask for nothing: at the routers'
defaults."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from autoglm_gateway.strict import Strict


def _only_off(value: bool) -> bool:
    if value:
        raise PydanticCustomError("not_off", "Input should be false")
    return value


def _only_on(value: bool) -> bool:
    if not value:
        raise PydanticCustomError("not_on", "Input should be true")
    return value


Off = Annotated[bool, AfterValidator(_only_off), WithJsonSchema({"type": "boolean", "const": False})]
On = Annotated[bool, AfterValidator(_only_on), WithJsonSchema({"type": "boolean", "const": True})]


class RouterDefaults(Strict):
    no_stop_trim: Off | None = None
    continue_final_message: Off | None = None
    return_hidden_states: Off | None = None
    skip_special_tokens: On | None = None
    separate_reasoning: On | None = None
    stream_reasoning: On | None = None
    include_reasoning: On | None = None
