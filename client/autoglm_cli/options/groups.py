"""Groups of options: a command takes a dataclass where it would take each of its fields.

    @dataclass(frozen=True, slots=True)
    class Ports:
        PANEL: ClassVar = "Ports"
        grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001

    @grouped
    def serve(*, ports: Ports, json: Json = False) -> None: ...

`autoglm serve --help` then has `--grpc-port` in a panel "Ports", and `serve` gets the group built.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a group's options in place of each parameter that is a dataclass."""
    own = inspect.signature(command, eval_str=True)
    groups = {name: shown.annotation for name, shown in own.parameters.items() if _is_group(shown.annotation)}
    options = {name: _options_of(group) for name, group in groups.items()}

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        made = {
            name: group(**{option.name: given.pop(option.name) for option in options[name]})
            for name, group in groups.items()
        }
        command(**made, **given)

    parts = (options.get(name, [shown]) for name, shown in own.parameters.items())
    parameters = [shown.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in parts for shown in part]
    vars(with_options)["__signature__"] = own.replace(parameters=parameters)
    return with_options


def said(*groups: Any) -> dict[str, Any]:
    """What was said on the command line or in the environment, by field; a flag that was not given is None or False."""
    values = {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    return {name: value for name, value in values.items() if value not in (None, []) and value is not False}


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _options_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    panel = getattr(group, "PANEL", None)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_in_panel(hints[field.name], panel),
        )
        for field in dataclasses.fields(group)
    ]


def _in_panel(annotated: Any, panel: str | None) -> Any:
    """A shared type keeps its own option: only the group's copy is in the panel."""
    kind, option = get_args(annotated)
    assert isinstance(option, OptionInfo), f"{annotated} is no option"
    option = copy.copy(option)
    option.rich_help_panel = panel
    return Annotated[kind, option]
