"""`autoglm models` and `autoglm models remove`"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from autoglm_cli.command_help import HelpfulCommand, HelpfulGroup
from autoglm_cli.errors import CommandError, needs
from autoglm_cli.home import is_exported, model_folder, model_names, models_folder, remove_model
from autoglm_cli.options import shared
from autoglm_cli.output import SafeConsole, notes, print_json
from autoglm_cli.paths import artifact_folder, repository_folder

models = typer.Typer(cls=HelpfulGroup, invoke_without_command=True)


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """`name`: None is that of a checkout, which has its place in the model repository. `trouble`: why it cannot be
    served."""

    name: str | None
    path: Path
    facts: dict[str, Any]
    trouble: str | None = None

    @classmethod
    def at(cls, path: Path, name: str | None) -> ExportedModel:
        engine = needs("autoglm_engine.manifest", "serve")
        try:
            manifest = engine.Manifest.load(path)
            manifest.verify_files(path)
            when = datetime.fromtimestamp((path / engine.MANIFEST_NAME).stat().st_mtime).astimezone()
        except (needs("autoglm_engine.errors", "serve").EngineError, OSError) as error:
            return cls(name, path, {}, str(error))
        facts = {
            "model_name": manifest.model_name,
            "runtime": manifest.runtime,
            "precision": manifest.precision,
            "bytes": sum(record.bytes for record in manifest.files.values()),
            "digest": manifest.digest,
            "exported": when.isoformat(timespec="seconds"),
        }
        return cls(name, path, facts)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "artifact": str(self.path), **self.facts, "trouble": self.trouble}

    def row(self) -> list[str]:
        if self.trouble:
            return [self.name or "-", f"cannot be served: {self.trouble}"]
        when = datetime.fromisoformat(self.facts["exported"])
        shown = [self.facts[key] for key in ("model_name", "runtime", "precision")]
        size, digest = f"{self.facts['bytes'] / 1e6:,.0f} MB", self.facts["digest"][:16]
        return [self.name or "-", *shown, size, digest, f"{when:%Y-%m-%d %H:%M}"]


@models.callback()
def list_models(context: typer.Context, json: shared.Json = False) -> None:
    """List the exported models, or remove one.

    `autoglm export --name NAME` makes one, `autoglm serve --artifact NAME` serves it. They are in $AUTOGLM_HOME/models,
    by default in the user's data folder. A checkout's own model, in its model repository, has no name.

    \b
    Examples:
      autoglm models
      autoglm models --json
      autoglm models remove glm
    """
    if context.invoked_subcommand is not None:
        return
    found = exported_models()
    if json:
        print_json({"folder": str(models_folder()), "models": [model.as_json() for model in found]})
        return
    if found:
        SafeConsole().print(_table(found))
    advice = "" if found else "; `autoglm export` makes one"
    count = "1 exported model" if len(found) == 1 else f"{len(found)} exported models"
    notes().print(f"{count}; those with names are in {models_folder()}{advice}", soft_wrap=True)


@models.command(cls=HelpfulCommand)
def remove(name: Annotated[str, typer.Argument(help="One of `autoglm models`.")]) -> None:
    """Delete an exported model and its files. A server that has loaded it keeps running.

    \b
    Examples:
      autoglm models remove glm
    """
    notes().print(f"removed {name}: {remove_model(name)}", soft_wrap=True)


def exported_models() -> list[ExportedModel]:
    """The checkout's own first, where there is one."""
    named = [ExportedModel.at(model_folder(name), name) for name in model_names()]
    own = _of_checkout()
    return [ExportedModel.at(own, None), *named] if own else named


def _of_checkout() -> Path | None:
    try:
        folder = artifact_folder(None, repository_folder(None))
    except CommandError:  # several that have names, or no repository at all
        return None
    return folder if is_exported(folder) and not folder.is_relative_to(models_folder()) else None


def _table(found: list[ExportedModel]) -> Table:
    table = Table(box=None)
    for column in ("name", "model", "runtime", "precision", "size", "digest", "exported"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for model in found:
        table.add_row(*model.row())
    return table
