"""Which vision tower an artifact has, and whether it can run here."""

from __future__ import annotations

from pathlib import Path

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.vision.tower import OnnxTower, Tower

from .cuda.bindings import CudaBindings
from .onnx.device import AUTO, check_providers, providers_of, tower_device
from .runtime_details import check_details
from .tensorrt.module import load_module
from .tensorrt.tower import open_tensorrt_tower

_TENSORRT = ("tensorrt", "tensorrt-rtx")


def open_tower(folder: Path, manifest: Manifest, *, num_threads: int = 1, device: str = AUTO) -> Tower:
    """The tower of the artifact in `folder`. `device`: for the runtime onnx, which has kernels for several.

    Raises ArtifactError with one sentence where it has none, or none that runs here.
    """
    if (settings := manifest.vision) is None:
        raise ArtifactError(f"the artifact at {folder} has no vision tower; its model reads text alone")
    if settings.runtime == "onnx":
        return _on_onnx(folder, settings, num_threads, tower_device(device))
    if settings.runtime not in _TENSORRT:
        known = ", ".join(("onnx", *_TENSORRT))
        raise ArtifactError(f"the vision tower is of the runtime {settings.runtime!r}; this engine has {known}")
    if settings.runtime != manifest.runtime:
        raise ArtifactError(
            f"the vision tower is of the runtime {settings.runtime}, the artifact of {manifest.runtime}; "
            "export it again"
        )
    check_details(manifest, folder)
    trt = load_module(manifest.runtime_details["module"], manifest.runtime_version)
    return open_tensorrt_tower(folder, manifest, trt, CudaBindings())


def files_of_tower(manifest: Manifest, settings: VisionSettings) -> list[str]:
    """Names of the tower's file and of those beside it that hold its weights."""
    return [settings.model, *(name for name in manifest.files if name.startswith(f"{settings.model}."))]


def _on_onnx(folder: Path, settings: VisionSettings, num_threads: int, device: str) -> Tower:
    providers = providers_of(device, rounds_float32=False)
    tower = OnnxTower(folder / settings.model, settings, num_threads=num_threads, providers=providers)
    check_providers(tower.session, device)
    return tower
