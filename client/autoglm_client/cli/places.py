"""Where the model repository and the exported model are."""

from __future__ import annotations

from pathlib import Path

from autoglm_client.model_names import ENSEMBLE, ModelNames
from autoglm_client.repositories import default_artifact, families, own_artifact

from .failures import CommandError

_REPOSITORY = Path("model_repository")
_CHECKOUT = Path(__file__).resolve().parents[3]  # of a source checkout: client/autoglm_client/cli/places.py


def repository_folder(chosen: Path | None, model: str | None = ENSEMBLE) -> Path:
    """That has the ensemble `model` and what works with it; None is any."""
    candidates = [chosen] if chosen is not None else [_REPOSITORY, _CHECKOUT / _REPOSITORY]
    for candidate in candidates:
        if any(model in (None, names.ensemble) for names in families(candidate)):
            return candidate
    if found := families(candidates[0]):
        names = ", ".join(family.ensemble for family in found)
        raise CommandError(f"the model repository at {candidates[0]} has no model {model!r}; it has {names}")
    raise CommandError(f"there is no model repository at {candidates[0]}; name it with --repository")


def artifact_folder(chosen: Path | None, repository: Path, model: str = ENSEMBLE) -> Path:
    """What a model has for itself goes before what is chosen: a choice is the whole server's."""
    names = ModelNames.of(model)
    return own_artifact(repository, names) or chosen or default_artifact(repository, names)


def embedder_folder(chosen: Path | None, repository: Path) -> Path:
    return chosen if chosen is not None else repository / ModelNames.of(ENSEMBLE).embedder / "1" / "artifact"


def is_exported(artifact: Path) -> bool:
    return (artifact / "manifest.json").is_file()
