"""Which runner an artifact needs, and whether it can run here."""

from __future__ import annotations

import dataclasses
import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import Manifest
from autoglm_engine.system.thread_limits import check_threads

from .base import Runner
from .runtime_details import check_details

# runtime -> (module, what makes the runner, distribution whose version must be the exporter's; None: the artifact
# carries its runtime, or the module checks for itself)
_RUNNERS = {
    "onnx": (".onnx.runner", "OnnxRunner", "onnxruntime"),
    "native": (".native.runner", "NativeRunner", None),
    "tensorrt": (".device_check.loading", "load_tensorrt_runner", None),
    "tensorrt-rtx": (".device_check.loading", "load_tensorrt_runner", None),
}
_SAME_CODE = {"onnxruntime": ("onnxruntime-gpu",)}  # under another name, with more kernels
_ANY_DEVICE = "auto"
_CPU_RUNTIMES = ("onnx", "native")  # graphs and programs of any number of slots


def load_runner(
    folder: Path, manifest: Manifest, *, num_threads: int, num_slots: int | None = None, device: str = _ANY_DEVICE
) -> Runner:
    """The runner of the artifact in `folder`. `device`: for the runtime onnx, which has kernels for several.

    `num_slots`: how many of the artifact's slots will be used; runtimes of the CPU have memory for no more.

    Raises ArtifactError with one sentence if it cannot run here.
    """
    entry = _RUNNERS.get(manifest.runtime)
    if entry is None:
        raise ArtifactError(f"the artifact's runtime is {manifest.runtime!r}; this engine has {', '.join(_RUNNERS)}")
    module, name, distribution = entry
    if distribution is not None:
        _check_version(distribution, manifest.runtime_version)
    check_details(manifest, folder)
    if manifest.runtime in _CPU_RUNTIMES:
        check_threads(num_threads)
        manifest = dataclasses.replace(manifest, num_slots=num_slots or manifest.num_slots)
    manifest.verify_files(folder, digests=True)  # before any of them is opened by a library
    options: dict[str, Any] = {"device": device} if manifest.runtime == "onnx" else {}
    make = getattr(importlib.import_module(module, __package__), name)
    runner: Runner = make(folder, manifest, num_threads=num_threads, **options)
    return runner


def _check_version(distribution: str, exported_for: str) -> None:
    """Major and minor must agree: quantised kernels and contrib operators change between minor versions."""
    installed = installed_version(distribution)
    if installed is None:
        raise ArtifactError(f"the artifact needs the package {distribution} {exported_for}, which is not installed")
    if installed.split(".")[:2] != exported_for.split(".")[:2]:
        raise ArtifactError(
            f"the artifact was exported for {distribution} {exported_for}, this machine has {installed}; "
            "export it again"
        )


def installed_version(distribution: str) -> str | None:
    """Of the distribution, or of another one that holds the same code; None where neither is installed."""
    for name in (distribution, *_SAME_CODE.get(distribution, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
