"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.triton_traces import traces_url
from typer.models import OptionInfo

from autoglm_cli.errors import CommandError

GATEWAY_CONFIG_VARIABLE = "AUTOGLM_GATEWAY_CONFIG"
_LAST_PORT = 65535

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository", envvar="AUTOGLM_REPOSITORY", help="Triton model repository. \\[default: the bundled one]"
    ),
]
Artifact = Annotated[
    Path | None,
    typer.Option(
        "--artifact",
        envvar="AUTOGLM_ARTIFACT",
        help="Exported model: its folder, or its name in `autoglm models`. "
        "\\[default: a checkout's own, else the only one in `autoglm models`]",
    ),
]


def _collector(endpoint: str | None) -> str | None:
    try:
        if endpoint is not None:
            traces_url(endpoint)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return endpoint


Otlp = Annotated[
    str | None,
    typer.Option(
        "--otlp",
        envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
        callback=_collector,
        help="Send traces to this collector (OTLP over HTTP), such as http://127.0.0.1:4318.",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings in effect, as a file for --config, and exit.")
]


def text_of_file(option: str, path: Path) -> str:
    """Raises CommandError where it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{option} names {path}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{option} names {path}, which is not UTF-8 at byte {error.start}") from None


def port(help_text: str) -> OptionInfo:
    """Checked here: the help of a range would leave the text no room."""

    def check(value: int | None) -> int | None:
        if value is not None and not 0 <= value <= _LAST_PORT:
            raise typer.BadParameter(f"it must be between 0 and {_LAST_PORT}")
        return value

    option: OptionInfo = typer.Option(callback=check, help=help_text)
    return option
