"""The library of an artifact that reads images, where it has one for this CPU."""

from __future__ import annotations

import platform
from pathlib import Path

from autoglm_engine.manifest import IMAGE_LIBRARIES, Manifest
from autoglm_engine.vision.compiled import PixelLibrary

from .native.library import choose_library
from .runtime_details import check_details

_MACHINE = "x86_64"  # what exporters compile for


def open_pixel_library(folder: Path, manifest: Manifest) -> PixelLibrary | None:
    """None where an exporter had no compiler, or this is another machine than it compiles for: then Pillow reads.

    Raises ArtifactError for a library that is not as the manifest describes it, or does not load.
    """
    check_details(manifest, folder)
    libraries = manifest.runtime_details.get(IMAGE_LIBRARIES)
    if not libraries or platform.machine() != _MACHINE:
        return None
    file = libraries[choose_library(libraries)]["file"]
    manifest.verify_files(folder, [file], digests=True)
    return PixelLibrary(folder / file)
