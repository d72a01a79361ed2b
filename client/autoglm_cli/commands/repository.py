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
from autoglm_cli.options.groups import grouped
from autoglm_cli.options.repository import FamilyOptions
from autoglm_cli.output import notes, print_json
from autoglm_cli.paths import artifact_folder, embedder_folder, is_exported, repository_folder
from autoglm_cli.repository.writer import Family, write_family

_DEFAULT = ModelNames.of(ENSEMBLE)
_TOKENIZERS = ("exit_with_engine",)  # settings of the tokenizer; the others are the engine's


@grouped
def repository(
    folder: Annotated[Path, typer.Argument(help="Model repository. It is made, or gets these models beside its own.")],
    *,
    options: FamilyOptions,
    json: shared.Json = False,
) -> None:
    """Write models into a Triton model repository under a name of their own: one server can serve several artifacts.

    \b
    Examples:
      autoglm repository models --name phone --artifact build/phone
      autoglm repository models --name chat --artifact build/chat --config chat.toml
      autoglm repository models --name draft --artifact build/chat --link
      autoglm repository bucket --alone
      autoglm serve --repository models --gateway
      autoglm generate --model phone "Open the settings"
    """
    family = _family(options)
    written = write_family(family, folder)
    if json:
        shown = {"repository": str(folder), "name": family.name, "models": written, "artifact": str(family.artifact)}
        print_json(shown)
    else:
        notes().print(f"{folder} has {', '.join(written)}", markup=False, soft_wrap=True)


def _family(options: FamilyOptions) -> Family:
    """Raises CommandError for what cannot be served."""
    if trouble := name_trouble(options.name):
        raise CommandError(trouble)
    bundled = repository_folder(options.source)
    family = Family(
        options.name,
        bundled,
        _checked_artifact(artifact_folder(options.artifact, bundled)),
        _checked_embedder(options.embedder, bundled),
        _parameters(options.config),
        options.link,
        options.alone,
    )
    check_slots(serving_settings(bundled, file_settings(options.config), {}), family.artifact)
    return family


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
