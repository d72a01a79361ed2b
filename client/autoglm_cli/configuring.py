"""The serving settings that a command works with: from the model repository, a file and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoglm_client.model_names import ENSEMBLE, ModelNames

from autoglm_cli.repository.repositories import parameters

from .errors import CommandError

if TYPE_CHECKING:
    from autoglm_engine.settings.file import Value
    from autoglm_engine.settings.model import ServingSettings

CONFIG_VARIABLE = "AUTOGLM_CONFIG"


def file_settings(config: Path | None) -> dict[str, Value]:
    """What the file sets; nothing without one. Raises a sentence for what is wrong in it."""
    from autoglm_engine.settings.file import read_settings

    if config is None:
        return {}
    if not config.is_file():
        raise CommandError(f"there is no settings file at {config}")
    return read_settings(config)


def command_settings(environ: Mapping[str, str] = os.environ) -> ServingSettings:
    """For commands that ask a server: the file that $AUTOGLM_CONFIG names, and the environment."""
    from autoglm_engine.settings.file import settings_of

    named = environ.get(CONFIG_VARIABLE)
    return settings_of({}, file_settings(Path(named) if named else None), environ)


def serving_settings(
    repository: Path, chosen: Mapping[str, Value], environ: Mapping[str, str] = os.environ, model: str = ENSEMBLE
) -> ServingSettings:
    """What the models behind the ensemble `model` of the repository will read. Raises a sentence for a value that they
    would refuse."""
    from autoglm_engine.settings.file import settings_of

    return settings_of(repository_parameters(repository, model), chosen, environ)


def server_environment(chosen: Mapping[str, Value], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """How the file's settings reach the models; what the environment has already goes first."""
    from autoglm_engine.settings.file import as_text, variable

    return {variable(name): as_text(value) for name, value in chosen.items() if variable(name) not in environ}


def check_slots(settings: ServingSettings, artifact: Path) -> None:
    from autoglm_engine.manifest import Manifest

    settings.num_slots(Manifest.load(artifact).num_slots)


def repository_parameters(repository: Path, model: str) -> dict[str, str]:
    """The settings among the `parameters` of each model's config.pbtxt, of those behind the ensemble `model`."""
    from autoglm_engine.triton.neighbours import NAMES

    found: dict[str, str] = {}
    for step in ModelNames.of(model).steps:
        found |= parameters(repository, step)
    return {name: value for name, value in found.items() if name not in NAMES}
