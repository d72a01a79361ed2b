"""Which runner an artifact needs, and whether it can run here."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path

from .errors import ArtifactError
from .manifest import Manifest
from .runner import Runner

# runtime -> (module, what makes the runner, distribution whose version must be the exporter's; None: the artifact carries
# its runtime, or the module checks for itself)
_RUNNERS = {
    "onnx": ("onnx_runner", "OnnxRunner", "onnxruntime"),
    "native": ("native_runner", "NativeRunner", None),
    "tensorrt": ("tensorrt_load", "load_tensorrt_runner", None),
    "tensorrt-rtx": ("tensorrt_load", "load_tensorrt_runner", None),
}


def load_runner(folder: Path, manifest: Manifest, *, num_threads: int) -> Runner:
    """The runner of the artifact in `folder`. Raises ArtifactError with one sentence if it cannot run here."""
    entry = _RUNNERS.get(manifest.runtime)
    if entry is None:
        raise ArtifactError(f"the artifact's runtime is {manifest.runtime!r}; this engine has {', '.join(_RUNNERS)}")
    module, name, distribution = entry
    if distribution is not None:
        _check_version(distribution, manifest.runtime_version)
    manifest.verify_files(folder)
    runner: Runner = getattr(importlib.import_module(f".{module}", __package__), name)(
        folder, manifest, num_threads=num_threads
    )
    return runner


def _check_version(distribution: str, exported_for: str) -> None:
    """Major and minor must agree: quantised kernels and contrib operators change between minor versions."""
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise ArtifactError(
            f"the artifact needs the package {distribution} {exported_for}, which is not installed"
        ) from None
    if installed.split(".")[:2] != exported_for.split(".")[:2]:
        raise ArtifactError(
            f"the artifact was exported for {distribution} {exported_for}, this machine has {installed}; export it again"
        )
