"""The engines of a model repository, and the artifacts that they have for themselves.
`autoglm_cli.repository.repositories` is the same for who has that package. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

DEFAULT_ENGINE = "engine"
_ARTIFACT = re.compile(r'key: "artifact" value \{ string_value: "([^"]+)" \}')


def engines(repository: Path) -> list[str]:
    """Of the models X those are called X-engine; that of autoglm is `engine`."""
    named = {
        path.parent.name: path.parent.name.removesuffix("-engine") for path in repository.glob("*-engine/config.pbtxt")
    }
    found = {**named, DEFAULT_ENGINE: "autoglm"}
    return sorted(name for name, model in found.items() if _has(repository, name) and _has(repository, model))


def own_artifact(repository: Path, engine: str) -> Path | None:
    """None where the environment may name it."""
    said = _ARTIFACT.search((repository / engine / "config.pbtxt").read_text(encoding="utf-8"))
    return repository / engine / said[1] if said else None


def _has(repository: Path, model: str) -> bool:
    return (repository / model / "config.pbtxt").is_file()
