"""What is in a model repository: the families of models that work together, and their artifacts."""

from __future__ import annotations

from pathlib import Path

from .model_names import ENSEMBLE, ModelNames

CONFIG = "config.pbtxt"


def families(repository: Path) -> list[ModelNames]:
    """Those whose ensemble and engine are there: autoglm first, others by name."""
    found = [ModelNames.of(path.parent.name) for path in repository.glob(f"*/{CONFIG}")]
    complete = [names for names in found if (repository / names.engine / CONFIG).is_file()]
    return sorted(complete, key=lambda names: (names.ensemble != ENSEMBLE, names.ensemble))
