"""What is asked of an answer: options of the request, and time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from autoglm_client.options import GenerationOptions
from autoglm_client.timeouts import Timeouts

from .answer_fields import AnswerFields
from .flags import FROM_FILES, flag_name
from .shared import text_of_file

System = Annotated[str | None, typer.Option("--system", help="System message, before the conversation.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="Show the model this PNG, JPEG or WEBP file, before the prompt. Repeatable."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", help="Most pixels of each image, of two frames as the models count.", min=1),
]
_SHORTEST_SECONDS = 0.001


def _checked_time(seconds: float | None) -> float | None:
    """Here, since the help of a range would leave the text no room."""
    if seconds is not None and not seconds >= _SHORTEST_SECONDS:  # also refuses NaN
        raise typer.BadParameter(f"it must be at least {_SHORTEST_SECONDS:g}")
    return seconds


TimeLimit = Annotated[
    float | None, typer.Option("--time-limit", callback=_checked_time, help="Seconds for the whole answer.")
]


@dataclass(frozen=True, slots=True)
class AnswerOptions(AnswerFields):
    PANEL: ClassVar = "Answer"

    time_limit: TimeLimit = None

    def options(self) -> GenerationOptions:
        names = [field.name for field in dataclasses.fields(AnswerFields)]
        return GenerationOptions(**{name: _said(name, getattr(self, name)) for name in names})

    def timeouts(self) -> Timeouts:
        return Timeouts() if self.time_limit is None else Timeouts(total=self.time_limit)


def _said(name: str, value: Any) -> Any:
    """A text may be in a file, where it is @ and the file's name; typer gives a list also where there is nothing."""
    if name in FROM_FILES and value is not None and value.startswith("@"):
        return text_of_file(flag_name(name), Path(value[1:]))
    return value or None if isinstance(value, list) else value
