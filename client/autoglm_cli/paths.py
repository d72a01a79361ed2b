"""Where the model repository and the exported model are.

The repository is the one that was named, else ./model_repository, else that of the checkout which these commands are
installed from (editable), else that of the installed package. The first three have a place for one artifact,
engine/1/artifact. The installed one is served where it lies, and its artifacts are in the user's folder (`home`).
"""

from __future__ import annotations

import os
from pathlib import Path

from autoglm_client.model_names import ENSEMBLE, ModelNames

from autoglm_cli.repository.repositories import default_artifact, families, installed_repository, own_artifact

from .errors import CommandError
from .home import artifact_of, home_embedder, is_exported, model_folder, name_for, only_model

__all__ = ["artifact_folder", "embedder_folder", "export_folder", "is_exported", "repository_folder", "server_artifact"]

BUNDLED_MODEL = "smollm2"
EMBEDDER_VARIABLE = "AUTOGLM_EMBEDDER"
_REPOSITORY = Path("model_repository")
_CHECKOUT = Path(__file__).resolve().parents[2]  # of a source checkout: client/autoglm_cli/paths.py


def repository_folder(chosen: Path | None, model: str | None = ENSEMBLE) -> Path:
    """That has the ensemble `model` and what works with it; None is any."""
    candidates = [chosen] if chosen is not None else _candidates()
    for candidate in candidates:
        if any(model in (None, names.ensemble) for names in families(candidate)):
            return candidate
    for candidate in candidates:
        if found := families(candidate):
            names = ", ".join(family.ensemble for family in found)
            raise CommandError(f"the model repository at {candidate} has no model {model!r}; it has {names}")
    raise CommandError(f"there is no model repository at {candidates[0]}; name it with --repository")


def _candidates() -> list[Path]:
    installed = installed_repository()
    return [_REPOSITORY, _CHECKOUT / _REPOSITORY, *([installed] if installed else [])]


def server_artifact(chosen: Path | None, repository: Path, default: str | None = None) -> Path | None:
    """What a whole server is told to serve; None where each family of the repository finds its own by its place in it.
    `default`: the exported model that is meant where none is chosen; without it the only one there is."""
    if chosen is not None:
        return artifact_of(chosen)
    if not _is_installed(repository):
        return None
    return model_folder(default) if default else only_model(BUNDLED_MODEL)


def artifact_folder(chosen: Path | None, repository: Path, model: str = ENSEMBLE) -> Path:
    """What a model has for itself goes before what is chosen: a choice is the whole server's."""
    names = ModelNames.of(model)
    return own_artifact(repository, names) or server_artifact(chosen, repository) or default_artifact(repository, names)


def export_folder(checkpoint: str, name: str | None, chosen: Path | None) -> Path:
    """Where an export goes that was given no folder. `chosen`: the model repository."""
    if name is not None:
        return model_folder(name)
    repository = repository_folder(chosen)
    if _is_installed(repository):
        return model_folder(name_for(checkpoint))
    return artifact_folder(None, repository)


def embedder_folder(chosen: Path | None, repository: Path) -> Path:
    if chosen is not None:
        return chosen
    if _is_installed(repository):
        return home_embedder()
    return repository / ModelNames.of(ENSEMBLE).embedder / "1" / "artifact"


def embedder_environment(repository: Path) -> dict[str, str]:
    """How the models of the installed repository find the embedder, where the environment names none."""
    is_told = EMBEDDER_VARIABLE in os.environ or not _is_installed(repository)
    return {} if is_told else {EMBEDDER_VARIABLE: str(home_embedder())}


def _is_installed(repository: Path) -> bool:
    installed = installed_repository()
    return installed is not None and repository.exists() and repository.samefile(installed)
