"""The project's wheel, built by the backend that pip would ask."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from tests.support.export.artifacts import ROOT


def build_wheel(folder: Path) -> Path:
    """As `pip wheel .`, without an environment of its own."""
    from hatchling.build import build_wheel as build

    before = Path.cwd()
    os.chdir(ROOT)  # where the backend looks for its project
    try:
        return folder / build(str(folder))
    finally:
        os.chdir(before)


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def model_files() -> list[str]:
    """Of the model repository, but for the engine's package and what is made at run time."""
    tree = ROOT / "model_repository"
    paths = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
    made = ("autoglm_engine", "artifact", "__pycache__")
    return sorted(str(path) for path in paths if not set(made) & set(path.parts))
