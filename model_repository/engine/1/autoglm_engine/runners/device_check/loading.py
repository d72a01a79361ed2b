"""The runner of a TensorRT artifact whose GPU was checked, and the check alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm_engine.errors import ArtifactError, WrongOnThisGpu
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.bindings import CudaBindings
from autoglm_engine.runners.runtime_details import check_details
from autoglm_engine.runners.tensorrt.load import open_runner
from autoglm_engine.runners.tensorrt.module import load_module
from autoglm_engine.runners.tensorrt.runner import TensorRTRunner

from .approval import approve, examined, record_of, refusal

_KEYS = ("module", "engine", "compute_capabilities", "weight_streaming", "attention_lengths", "prefill_lengths")


def load_tensorrt_runner(folder: Path, manifest: Manifest, *, num_threads: int | None = None) -> TensorRTRunner:
    """The CPU's threads are of no use to it. Raises ArtifactError with one sentence where the artifact cannot run
    here."""
    if missing := [key for key in _KEYS if key not in manifest.runtime_details]:
        raise ArtifactError(f"the artifact's manifest lacks {', '.join(missing)}; export it again")
    trt = load_module(manifest.runtime_details["module"], manifest.runtime_version)
    return open_runner(folder, manifest, trt, CudaBindings(), approve=approve)


def check_here(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Checks the artifact on this machine's GPU, whatever its manifest says, and returns what the manifest is to keep
    of it. Raises ArtifactError with one sentence where it cannot run here, or computes something else."""
    check_details(manifest, folder)
    if "reference" not in manifest.runtime_details:
        raise ArtifactError(f"the artifact at {folder} has no reference to check a GPU by; export it again")
    trt = load_module(manifest.runtime_details["module"], manifest.runtime_version)
    return check_on(folder, manifest, trt, CudaBindings())


def check_on(
    folder: Path, manifest: Manifest, trt: Any, cuda: Cuda, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """See `check_here`; the rest as for `open_runner`."""
    record: dict[str, Any] = {}

    def examine(folder: Path, manifest: Manifest, runner: TensorRTRunner, cuda: Cuda) -> None:
        report = examined(folder, manifest, runner, cuda)
        if report.failure is not None:
            raise WrongOnThisGpu(refusal(report.failure, manifest, cuda.device))
        record.update(record_of(report, manifest, cuda.device))

    open_runner(folder, manifest, trt, cuda, environ, approve=examine).close()
    return record
