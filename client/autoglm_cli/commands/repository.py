"""`autoglm repository`"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from autoglm_client.model_names import ENSEMBLE, ModelNames, name_trouble

from autoglm_cli.configuring import check_slots, file_settings, serving_settings
from autoglm_cli.errors import CommandError, needs
from autoglm_cli.options import shared
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, embedder_folder, is_exported, repository_folder
from autoglm_cli.repository.writer import Family, write_family

_DEFAULT = ModelNames.of(ENSEMBLE)
_TOKENIZERS = ("exit_with_engine",)  # settings of the tokenizer; the others are the engine's


def repository(
    folder: Annotated[Path, typer.Argument(help="Model repository; is made, or gets these models besides its others.")],
    name: Annotated[
        str,
        typer.Option(
            "--name",
            "-n",
            help="What clients ask for: up to 48 letters, digits, . _ and -. NAME-tokenizer, NAME-engine, "
            "NAME-detokenizer and NAME-embedder work behind it.",
        ),
    ] = ENSEMBLE,
    artifact: shared.Artifact = None,
    embedder: Annotated[
        Path | None,
        typer.Option(envvar="AUTOGLM_EMBEDDER", help="Exported embedder. \\[default: that of --source, if any]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings of these models alone, a .toml or .json file.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Symbolic links to code and artifacts in place of copies.")
    ] = False,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Each model carries all that it needs, as s3:// and other repositories that are no folder want it.",
        ),
    ] = False,
    source: Annotated[
        Path | None, typer.Option(help="Where the code is from. \\[default: the bundled model repository]")
    ] = None,
    json: shared.Json = False,
) -> None:
    """Write models into a Triton model repository, under a name of their own: one server then serves several artifacts.

    \b
    Examples:
      autoglm repository models --name phone --artifact build/phone
      autoglm repository models --name chat --artifact build/chat --config chat.toml
      autoglm repository models --name draft --artifact build/chat --link
      autoglm repository bucket --alone
      autoglm serve --repository models --gateway
      autoglm generate --model phone "Open the settings"
    """
    if trouble := name_trouble(name):
        raise CommandError(trouble)
    bundled = repository_folder(source)
    family = Family(
        name,
        bundled,
        _checked_artifact(artifact_folder(artifact, bundled)),
        _checked_embedder(embedder, bundled),
        _parameters(config),
        link,
        alone,
    )
    check_slots(serving_settings(bundled, file_settings(config), {}), family.artifact)
    written = write_family(family, folder)
    if json:
        print_json({"repository": str(folder), "name": name, "models": written, "artifact": str(family.artifact)})
    else:
        notes().print(f"{folder} has {', '.join(written)}", markup=False, soft_wrap=True)


def _checked_artifact(folder: Path) -> Path:
    if not is_exported(folder):
        raise CommandError(f"there is no exported model at {folder}; make one with `autoglm export`")
    needs("autoglm_engine.manifest", "serve").Manifest.load(folder).verify_files(folder, digests=False)
    return folder


def _checked_embedder(chosen: Path | None, bundled: Path) -> Path | None:
    """What was chosen must be there; the bundled one need not."""
    folder = embedder_folder(chosen, bundled)
    if chosen is None and not is_exported(folder):
        return None
    needs("autoglm_engine.embedder", "serve").EmbedderManifest.load(folder)
    return folder


def _parameters(config: Path | None) -> Mapping[str, Mapping[str, str]]:
    """The file's settings by the model whose config.pbtxt holds them."""
    from autoglm_engine.settings.file import as_text

    chosen: dict[str, Any] = file_settings(config)
    if wrong := sorted(chosen.keys() - _of_models()):
        raise CommandError(f"the setting {wrong[0]} cannot be one model's: {_why_not(wrong[0])}")
    texts = {name: as_text(value) for name, value in chosen.items()}
    return {
        _DEFAULT.tokenizer: {name: text for name, text in texts.items() if name in _TOKENIZERS},
        _DEFAULT.engine: {name: text for name, text in texts.items() if name not in _TOKENIZERS},
    }


def _of_models() -> set[str]:
    from autoglm_engine.settings.model import EngineSettings

    return {field.name for field in dataclasses.fields(EngineSettings)} - {"redis_url"} | {"num_threads", *_TOKENIZERS}


def _why_not(name: str) -> str:
    if name == "redis_url":
        return "Triton shows config.pbtxt to anybody; it goes into the environment of the server, AUTOGLM_REDIS_URL"
    return "it is of the autoglm commands"
