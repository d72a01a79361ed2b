"""How --help looks."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class HelpfulCommand(TyperCommand):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = joined_lines(self.help)

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types_of_flags(super().get_params(ctx))


class HelpfulGroup(TyperGroup):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = joined_lines(self.help)

    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types_of_flags(super().get_params(ctx))


def joined_lines(text: str | None) -> str | None:
    """Paragraphs are wrapped to the screen, not as the source is; one that begins with \\b is left as it is."""
    if text is None:
        return None
    paragraphs = text.split("\n\n")
    return "\n\n".join(one if one.startswith("\b") else " ".join(one.split("\n")) for one in paragraphs)


def _without_types_of_flags(parameters: list[Any]) -> list[Any]:
    """A flag takes no value, so none is shown beside it."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
