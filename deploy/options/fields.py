"""The fields of client, command line and gateway: modules that are made whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from autoglm_engine.options.table import CLIENT, COMMAND, EXTENSION, Kind, Option, options_on

_TYPES: Mapping[Kind, str] = {
    "INT32": "int",
    "INT64": "int",
    "FP32": "float",
    "BOOL": "bool",
    "STRING": "str",
    "STRINGS": "str | Sequence[str]",
    "JSON": "Mapping[str, Any] | str",
}
_JSON_TYPES = {
    "logit_bias": "Mapping[int, float] | Mapping[str, float]",
    "tools": "Sequence[Mapping[str, Any]]",
    "chat_template_kwargs": "Mapping[str, Any]",
}
LINE_LENGTH = 120
_SMALLEST = 1e-6  # above 0, and in 32 bits too
_CLIENT = '''\
"""The options of a generation: as fields, as keywords and on the wire. Made by `make options`; not to be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

OptionKind = Literal[{kinds}]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionFields:
    """Of one request. None leaves an option to the server."""

{fields}

class OptionChanges(TypedDict, total=False):
    """The fields of `OptionFields` as keyword arguments."""

{changes}

OPTION_KINDS: Mapping[str, OptionKind] = {{
{names}}}
'''
_COMMANDS = '''\
"""The flags of a request's options. Made by `make options`; not to be edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .flags import flag


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """None leaves an option to the server."""

    # fmt: off
{fields}'''
_GATEWAY = '''\
"""The fields of a request beside those of OpenAI's API. Made by `make options`; not to be edited."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from autoglm_gateway.strict import Items, Strict


class Extensions(Strict):
    """What this server can do beside: `docs/architecture.md` says what each means."""

{fields}'''


def client_module() -> str:
    options = options_on(CLIENT)
    return _CLIENT.format(
        kinds=", ".join(f'"{kind}"' for kind in get_args(Kind)),
        fields="".join(f'    {o.name}: {_type(o)} | None = None\n    """{o.meaning}"""\n' for o in options),
        changes="".join(f"    {option.name}: {_type(option)} | None\n" for option in options),
        names="".join(f'    "{option.name}": "{option.kind}",\n' for option in options),
    )


def command_module() -> str:
    return _COMMANDS.format(fields="".join(_flag(option) for option in options_on(COMMAND)))


def gateway_module() -> str:
    fields = (f"    {option.name}: {_gateway_type(option)} | None = None\n" for option in options_on(EXTENSION))
    return _GATEWAY.format(fields="".join(fields))


def _type(option: Option) -> str:
    return _JSON_TYPES.get(option.name, _TYPES[option.kind])


def _flag(option: Option) -> str:
    kind = {**_TYPES, "STRINGS": "list[str]", "JSON": "str"}[option.kind]
    said = ", ".join(f'"{text}"' for text in (option.name, option.meaning, option.short) if text)
    parts = f"{kind} | None, flag({said})"
    if len(line := f"    {option.name}: Annotated[{parts}] = None") <= LINE_LENGTH:
        return f"{line}\n"
    return f"    {option.name}: Annotated[\n        {parts}\n    ] = None\n"


def _gateway_type(option: Option) -> str:
    if option.is_number:
        return _annotated(_TYPES[option.kind], _bounds(option))
    if option.choices:
        return f"Literal[{', '.join(repr(choice) for choice in option.choices)}]".replace("'", '"')
    if option.kind == "STRINGS":
        return _annotated(f"Items[{_annotated('str', _lengths(option))}]", [f"max_length={option.max_items}"])
    return {"BOOL": "bool", "STRING": "str", "JSON": "dict[str, Any] | str"}[option.kind]


def _annotated(type_name: str, bounds: list[str]) -> str:
    return f"Annotated[{type_name}, Field({', '.join(bounds)})]"


def _bounds(option: Option) -> list[str]:
    """A bound of the model's is known to the server alone."""
    low = _SMALLEST if option.low_open else option.low
    return [f"{name}={bound}" for name, bound in (("ge", low), ("le", option.high)) if not isinstance(bound, str)]


def _lengths(option: Option) -> list[str]:
    assert option.characters is not None, f"{option.name} has no bound of its texts"
    low, high = option.characters
    return [*([f"min_length={low}"] if low else []), f"max_length={high}"]
