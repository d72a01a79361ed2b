"""On which device ONNX Runtime computes an artifact: the CPU, or a GPU through its CUDA kernels.

The GPU is device 0 of the process; CUDA_VISIBLE_DEVICES chooses which one that is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.bindings import CudaBindings
from autoglm_engine.runners.host_memory import check_memory
from autoglm_engine.settings.model import DEVICES

from .memory import CacheLayout, CacheMemory, GpuMemory, HostMemory

AUTO = "auto"
CUDA_PRECISION = "fp16"
_CUDA_KERNELS = "CUDAExecutionProvider"
# Memory in the sizes that are asked for: the arena's own growth would double them.
_CUDA_OPTIONS = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}
_log = logging.getLogger(__name__)


def open_memory(device: str, manifest: Manifest, *, open_cuda: Callable[[], Cuda] = CudaBindings) -> CacheMemory:
    """The slots' memory on `device`; `auto`: on a GPU where this machine and the artifact allow it.

    Raises ArtifactError with one sentence where `cuda` is asked for and cannot be had.
    """
    layout = CacheLayout.of(manifest)
    if device not in DEVICES:
        raise ArtifactError(f"the device is {device!r}; allowed are {', '.join(DEVICES)}")
    if device != "cpu":
        try:
            return _on_gpu(manifest, layout, open_cuda)
        except ArtifactError as error:
            if device != AUTO:
                raise
            _log.info("ONNX Runtime computes on the CPU: %s", error)
    if manifest.precision == CUDA_PRECISION:
        _log.warning("the CPU computes an fp16 artifact in float32, more slowly than an int8 one")
    check_memory(manifest, layout.num_bytes)
    try:
        return HostMemory(layout)
    except MemoryError:
        raise ArtifactError(
            f"there is not enough memory for {manifest.num_slots} slots of {manifest.max_length} tokens"
        ) from None


def tower_device(device: str, *, open_cuda: Callable[[], Cuda] = CudaBindings) -> str:
    """Where a vision tower is computed, whose graph is float32 and has kernels on either device: cpu or cuda. Raises
    ArtifactError as `open_memory`."""
    if device not in DEVICES:
        raise ArtifactError(f"the device is {device!r}; allowed are {', '.join(DEVICES)}")
    if device == "cpu":
        return device
    try:
        _check_package()
        open_cuda().close()
    except ArtifactError as error:
        if device != AUTO:
            raise
        _log.info("ONNX Runtime computes the vision tower on the CPU: %s", error)
        return "cpu"
    return "cuda"


def providers_of(device: str, *, rounds_float32: bool = True) -> Sequence[Any]:
    """ONNX Runtime's `providers`. `rounds_float32`: to TF32 in products, as CUDA's kernels do unless told otherwise."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    import onnxruntime

    onnxruntime.preload_dlls()  # CUDA's libraries of the packages beside it
    options = {**_CUDA_OPTIONS, "use_tf32": str(int(rounds_float32))}
    return [(_CUDA_KERNELS, options), "CPUExecutionProvider"]  # the latter for shapes, which are on the host


def check_providers(session: Any, device: str) -> None:
    """ONNX Runtime goes on with the CPU where it cannot load its CUDA kernels, and only logs why."""
    if device != "cpu" and _CUDA_KERNELS not in session.get_providers():
        raise ArtifactError(
            "ONNX Runtime could not load its CUDA kernels (its log says why): they need CUDA 13 and cuDNN 9, "
            "which pip install 'autoglm-triton[onnx-gpu]' brings, and a driver that serves them"
        )


def _on_gpu(manifest: Manifest, layout: CacheLayout, open_cuda: Callable[[], Cuda]) -> GpuMemory:
    if manifest.precision != CUDA_PRECISION:
        raise ArtifactError(
            f"ONNX Runtime's CUDA kernels compute {CUDA_PRECISION}, the artifact is {manifest.precision}: "
            f"export it with --precision {CUDA_PRECISION}"
        )
    _check_package()
    try:
        return GpuMemory(layout, open_cuda())
    except DeviceError as error:
        if not error.is_out_of_memory:
            raise ArtifactError(str(error)) from error
        raise ArtifactError(
            f"there is not enough GPU memory for {manifest.num_slots} slots of {manifest.max_length} tokens, "
            f"{layout.num_bytes / 1e9:.2f} GB ({error}); export it with fewer or shorter slots"
        ) from error


def _check_package() -> None:
    import onnxruntime

    if _CUDA_KERNELS not in onnxruntime.get_available_providers():
        raise ArtifactError(
            "the installed ONNX Runtime has no CUDA kernels: pip uninstall onnxruntime onnxruntime-gpu, then "
            "pip install 'onnxruntime-gpu[cuda,cudnn]' alone, because the two packages overwrite each other"
        )
