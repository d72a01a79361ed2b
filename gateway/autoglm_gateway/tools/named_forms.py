"""Forms of calls that a setting names, for models that write calls otherwise than their chat template renders them.

Of several forms under one name, each is read; what is held to is the one of whose marks the model has most as tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .call_form import ID, TYPES, CallForm, Tags

Forms = tuple[CallForm, ...]

_OBJECT = '{"name": "'
_HERMES = CallForm(
    opening=f"<tool_call>\n{_OBJECT}",
    middle='", "arguments": ',
    closing="}\n</tool_call>",
    between="}\n</tool_call>\n<tool_call>\n" + _OBJECT,
    name_field="name",
    arguments_field="arguments",
)
_LLAMA = CallForm(
    opening=_OBJECT,
    middle='", "parameters": ',
    closing="}",
    between="}; " + _OBJECT,
    name_field="name",
    arguments_field="parameters",
    also=("<|python_tag|>",),
)
_GLM_XML = CallForm(
    opening="<tool_call>",
    middle="\n",
    closing="</tool_call>",
    between="</tool_call>\n<tool_call>",
    tags=Tags("<arg_key>", tuple((kind, "</arg_key>\n<arg_value>") for kind in TYPES), "</arg_value>\n"),
)
_MISTRAL_LIST = CallForm(
    opening=f"[TOOL_CALLS][{_OBJECT}",
    middle='", "arguments": ',
    closing="}]",
    between="}, " + _OBJECT,
    name_field="name",
    arguments_field="arguments",
    short_ids=True,
)
_MISTRAL = CallForm("[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]", short_ids=True)

NAMED: Mapping[str, Forms] = {
    "hermes": (_HERMES,),
    "llama": (_LLAMA, replace(_LLAMA, between="}, " + _OBJECT)),
    "glm": (CallForm("", "\n", "", "\n"),),
    "glm-xml": (_GLM_XML,),
    "mistral": (
        _MISTRAL_LIST,
        _MISTRAL,
        replace(_MISTRAL, middle=f"[CALL_ID]{ID}[ARGS]"),
        replace(_MISTRAL, middle=""),
        replace(_MISTRAL_LIST, opening=f"[TOOL_CALLS]{_OBJECT}", closing="}", between=None),
    ),
}
