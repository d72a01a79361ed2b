"""Puts the commands together. What only some of them need is imported inside them."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from autoglm_cli.commands.batch import batch
from autoglm_cli.commands.bench import bench
from autoglm_cli.commands.chat import chat
from autoglm_cli.commands.demo import demo
from autoglm_cli.commands.export import export
from autoglm_cli.commands.export_embedder import export_embedder
from autoglm_cli.commands.gateway import gateway, gateway_key
from autoglm_cli.commands.generate import generate
from autoglm_cli.commands.health import health
from autoglm_cli.commands.inspecting import inspect
from autoglm_cli.commands.models import models
from autoglm_cli.commands.profile import profile
from autoglm_cli.commands.repository import repository
from autoglm_cli.commands.serve import serve

from .errors import FriendlyGroup

app = typer.Typer(
    name="autoglm",
    cls=FriendlyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(
        demo,
        export,
        export_embedder,
        inspect,
        repository,
        serve,
        gateway,
        gateway_key,
        generate,
        chat,
        batch,
        health,
        bench,
        profile,
    ),
)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(models, name="models")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("autoglm-triton"))
        raise typer.Exit


@app.callback()
def autoglm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Serve language models from NVIDIA Triton, and ask them.

    \b
    Examples:
      autoglm demo                                  all of it, once
      autoglm export smollm2                        make the artifact that the server loads
      autoglm serve                                 run the server here, on loopback
      autoglm generate "Why is the sky blue?"       ask it

    The server is found at 127.0.0.1:8001, at --url or at $AUTOGLM_URL. AUTOGLM_DEBUG=1 shows tracebacks.
    """


def main() -> None:
    app()
