"""Puts the commands together. What only some of them need is imported inside them."""

from __future__ import annotations

import sys
from collections.abc import Callable
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

from .command_help import HelpfulCommand
from .errors import FriendlyGroup, fail, sentence_of

app = typer.Typer(
    name="autoglm",
    cls=FriendlyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Begin here": (demo,),
    "Models": (export, export_embedder, inspect, repository),
    "Servers": (serve, gateway, gateway_key),
    "Ask a server": (generate, chat, batch, health, bench, profile),
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(cls=HelpfulCommand, rich_help_panel=panel)(command)
app.add_typer(models, name="models", rich_help_panel="Models")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("autoglm-triton"))
        raise typer.Exit


@app.callback()
def autoglm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Serve language models with NVIDIA Triton, and ask them.

    \b
    Examples:
      autoglm demo                                see it work, start to end
      autoglm export smollm2                      make what the server loads
      autoglm serve                               run the server on this machine
      autoglm generate "Why is the sky blue?"     ask it

    Commands find the server at 127.0.0.1:8001, or at --url or $AUTOGLM_URL. AUTOGLM_DEBUG=1 shows tracebacks.
    """


def main() -> None:
    try:
        app()
    except OSError as error:  # of what is written before a command begins, such as --version on a full disk
        fail(sentence_of(error))
        sys.exit(1)
