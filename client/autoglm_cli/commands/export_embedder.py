"""`autoglm export-embedder`"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from autoglm_cli.errors import CommandError, needs
from autoglm_cli.options import shared
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import embedder_folder, repository_folder

BUNDLED_EMBEDDER = "all-minilm-l6-v2"


def export_embedder(
    checkpoint: Annotated[
        str, typer.Argument(help=f"Folder of a sentence-embedding model (BERT), or {BUNDLED_EMBEDDER} (a package).")
    ] = BUNDLED_EMBEDDER,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", envvar="AUTOGLM_EMBEDDER", help="Its folder. \\[default: the repository's]"),
    ] = None,
    repository: shared.Repository = None,
    json: shared.Json = False,
) -> None:
    """Export the embedder that the semantic cache compares questions with.

    \b
    Examples:
      autoglm export-embedder
      autoglm export-embedder ./my-sentence-model -o build/embedder
    """
    target = embedder_folder(output, repository_folder(repository))
    exporter = needs("autoglm_export.embedder.export", "export")
    try:
        manifest = exporter.export_embedder(checkpoint, target)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this export needs the package {error.name}: pip install 'autoglm-triton[export]'"
        ) from None
    if json:
        print_json({"embedder": str(target), **dataclasses.asdict(manifest), "digest": manifest.digest})
    else:
        notes().print(f"exported {manifest.model_name} ({manifest.num_dimensions} dimensions) to {target}")
