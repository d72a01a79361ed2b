"""Options of `autoglm repository`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from autoglm_client.model_names import ENSEMBLE

from . import shared


@dataclass(frozen=True, slots=True)
class FamilyOptions:
    """The models behind one ensemble."""

    PANEL: ClassVar = None

    name: Annotated[
        str,
        typer.Option(
            "--name",
            "-n",
            help="What clients ask for: up to 48 letters, digits, . _ and -. NAME-tokenizer, NAME-engine, "
            "NAME-detokenizer, NAME-embedder and NAME-vision work behind it.",
        ),
    ] = ENSEMBLE
    artifact: shared.Artifact = None
    embedder: Annotated[
        Path | None,
        typer.Option(envvar="AUTOGLM_EMBEDDER", help="Exported embedder. \\[default: that of --source, if any]"),
    ] = None
    config: Annotated[Path | None, typer.Option(help="Settings of these models alone, a .toml or .json file.")] = None
    link: Annotated[bool, typer.Option("--link", help="Link to code and artifacts instead of copying them.")] = False
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Put everything a model needs into its folder, as repositories in object storage (s3://) need.",
        ),
    ] = False
    source: Annotated[
        Path | None, typer.Option(help="Where the code is from. \\[default: the bundled model repository]")
    ] = None
