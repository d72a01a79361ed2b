"""Puts the commands together. What only some of them need is imported inside them."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from .batch import batch
from .bench import bench
from .chat import chat
from .demo import demo
from .export import export
from .export_embedder import export_embedder
from .failures import FriendlyGroup
from .gateway import gateway, gateway_key
from .generate import generate
from .health import health
from .inspecting import inspect
from .models import models
from .profile import profile
from .repository import repository
from .serve import serve

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
