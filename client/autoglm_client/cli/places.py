"""Where the model repository and the exported model are."""

from __future__ import annotations

from pathlib import Path

from .failures import CommandError

_REPOSITORY = Path("model_repository")
_CHECKOUT = Path(__file__).resolve().parents[3]  # of a source checkout: client/autoglm_client/cli/places.py


def repository_folder(chosen: Path | None) -> Path:
    candidates = [chosen] if chosen is not None else [_REPOSITORY, _CHECKOUT / _REPOSITORY]
    for candidate in candidates:
        if (candidate / "engine" / "config.pbtxt").is_file():
            return candidate
    raise CommandError(f"there is no model repository at {candidates[0]}; name it with --repository")


def artifact_folder(chosen: Path | None, repository: Path) -> Path:
    return chosen if chosen is not None else repository / "engine" / "1" / "artifact"


def embedder_folder(chosen: Path | None, repository: Path) -> Path:
    return chosen if chosen is not None else repository / "embedder" / "1" / "artifact"


def is_exported(artifact: Path) -> bool:
    return (artifact / "manifest.json").is_file()
