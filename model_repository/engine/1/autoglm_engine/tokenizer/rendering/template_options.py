"""What a request tells a chat template beside its messages and tools: variables of the template's own, and where the
prompt ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoglm_engine.errors import InvalidRequest
from autoglm_engine.options.json_names import json_type
from autoglm_engine.options.parsing import decode_utf8

KWARGS = "chat_template_kwargs"
ADD, CONTINUE = "add_generation_prompt", "continue_final_message"
TEMPLATE_INPUTS = (KWARGS, ADD, CONTINUE)
MAX_KWARGS_BYTES = 65_536
MAX_KWARGS = 64
_MAX_DEPTH = 64
_OWN_INPUTS = frozenset({"messages", "tools", ADD, CONTINUE})  # fields of a request
_OF_THE_MODEL = frozenset({"chat_template", "tokenize", "raise_exception", "strftime_now"})


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """`variables`: what the template may read, by name; those that it does not read are without effect, as with vLLM
    and transformers: callers of many models say `enable_thinking` to all of them. `add_generation_prompt`: the
    beginning of the answer after the messages. `continue_final_message`: the answer goes on with the last message."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def template_options(
    kwargs: bytes | None = None, add: bool | None = None, continue_final: bool | None = None
) -> TemplateOptions:
    """None is what was not said. Raises InvalidRequest."""
    if add and continue_final:
        raise InvalidRequest(
            f"{CONTINUE} and {ADD} are both true; an answer goes on with the last message or begins after it"
        )
    variables = {} if kwargs is None else _read_kwargs(kwargs)
    return TemplateOptions(variables, not continue_final if add is None else add, bool(continue_final))


def _read_kwargs(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_KWARGS_BYTES:
        raise InvalidRequest(f"{KWARGS} has {len(raw)} bytes; at most {MAX_KWARGS_BYTES} are read")
    try:
        found = json.loads(decode_utf8(raw, KWARGS))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{KWARGS} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(
            f'{KWARGS} is {json_type(found)}; it must be an object, such as {{"enable_thinking": false}}'
        )
    if len(found) > MAX_KWARGS:
        raise InvalidRequest(f"{KWARGS} has {len(found)} names; at most {MAX_KWARGS} are allowed")
    for name in found:
        _check_name(name)
    _check_depth(found)
    return found


def _check_name(name: str) -> None:
    if name in _OWN_INPUTS:
        raise InvalidRequest(f"{KWARGS} has {name}, which is a field of the request itself")
    if name in _OF_THE_MODEL or name.endswith("_token"):
        raise InvalidRequest(f"{KWARGS} has {name:.80}, which the model sets and a request cannot")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise InvalidRequest(f"{KWARGS} nests deeper than {_MAX_DEPTH} levels")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
