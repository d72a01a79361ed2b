"""Which GPU and which of our GPU runtimes this machine has, and in one sentence why not.

Asked through cuda-python, which needs neither torch nor TensorRT; nothing here allocates on the device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Capability = tuple[int, int]  # compute capability, (8, 9) for 8.9

# What a GPU must at least be. NVIDIA's support matrix of TensorRT-RTX; int4 means weights only.
MIN_CAPABILITY: dict[str, Capability] = {"fp16": (7, 5), "bf16": (8, 0), "int4": (8, 0), "fp8": (8, 9)}
ATTENTION_CAPABILITY: Capability = (8, 0)  # of TensorRT's attention layer, in every precision
# TensorRT-RTX builds for these and no others that have its attention.
RTX_CAPABILITIES: tuple[Capability, ...] = ((8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
# runtime of `autoglm export` -> (Python module, the extra that brings it, precisions, the default first), in the order
# of preference
RUNTIMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt", ("bf16", "fp16", "fp8", "int4")),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx", ("bf16", "fp16", "fp8", "int4")),
    "onnx": ("onnxruntime", "onnx-gpu", ("fp16",)),
}


class NoGpu(Exception):
    """One sentence that says what is missing."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    capability: Capability
    memory_bytes: int
    driver: str  # the newest CUDA that the driver knows, "13.0"

    @property
    def capability_text(self) -> str:
        return f"{self.capability[0]}.{self.capability[1]}"


def find_gpu() -> Gpu:
    """The first visible GPU. Raises NoGpu."""
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError:
        raise NoGpu(
            "no GPU can be looked for without the package cuda-python: pip install 'autoglm-triton[tensorrt]'"
        ) from None
    try:
        _call(driver.cuInit, 0)
        if _call(driver.cuDeviceGetCount) == 0:
            raise NoGpu("the NVIDIA driver shows no GPU; is CUDA_VISIBLE_DEVICES set to none?")
        return _describe(driver, _call(driver.cuDeviceGet, 0))
    except RuntimeError as error:  # also what cuda-python raises where libcuda cannot be loaded
        raise NoGpu(f"this machine has no usable NVIDIA GPU: {str(error).splitlines()[0]}") from None


def _describe(driver: Any, device: Any) -> Gpu:
    attribute = driver.CUdevice_attribute
    major = _call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    minor = _call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    version = _call(driver.cuDriverGetVersion)
    return Gpu(
        name=_call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode(),
        capability=(int(major), int(minor)),
        memory_bytes=int(_call(driver.cuDeviceTotalMem, device)),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """cuda-python's functions return (status, result); a status that is not 0 is raised as RuntimeError."""
    status, *result = function(*arguments)
    if int(status) != 0:
        raise RuntimeError(
            f"{getattr(function, '__name__', 'the CUDA driver')} answered {getattr(status, 'name', status)}"
        )
    return result[0] if result else None


def why_not_runtime(runtime: str, gpu: Gpu, providers: Callable[[], list[str]] | None = None) -> str | None:
    """Why `runtime` cannot run on `gpu` with what is installed; None where it can. `providers`: of ONNX Runtime."""
    module, extra, _ = RUNTIMES[runtime]
    if importlib.util.find_spec(module) is None:
        return f"the package of {runtime} is not installed: pip install 'autoglm-triton[{extra}]'"
    if runtime != "onnx" and gpu.capability < ATTENTION_CAPABILITY:
        return (
            f"the attention of {runtime} needs compute capability 8.0; {gpu.name} has {gpu.capability_text}: use onnx"
        )
    if runtime == "tensorrt-rtx" and gpu.capability not in RTX_CAPABILITIES:
        allowed = ", ".join(f"{major}.{minor}" for major, minor in RTX_CAPABILITIES)
        return (
            f"tensorrt-rtx does not run on compute capability {gpu.capability_text}; allowed are {allowed}: use "
            "tensorrt"
        )
    if runtime == "onnx" and "CUDAExecutionProvider" not in (providers or _onnx_providers)():
        return f"the installed ONNX Runtime computes on the CPU only: pip install 'autoglm-triton[{extra}]'"
    return None


def _onnx_providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def why_not_precision(precision: str, runtime: str, gpu: Gpu) -> str | None:
    """Why `runtime` cannot compute in `precision` on `gpu`; None where it can."""
    allowed = RUNTIMES[runtime][2]
    if precision not in allowed:
        return f"the runtime {runtime} has no {precision} on a GPU; allowed are {', '.join(allowed)}"
    needed = MIN_CAPABILITY[precision]
    if gpu.capability < needed:
        return f"{precision} needs compute capability {needed[0]}.{needed[1]}; {gpu.name} has {gpu.capability_text}"
    return None


def best_runtime(gpu: Gpu) -> str:
    """The first runtime that can run here. Raises NoGpu with the reason of each."""
    reasons = {runtime: why_not_runtime(runtime, gpu) for runtime in RUNTIMES}
    for runtime, reason in reasons.items():
        if reason is None:
            return runtime
    raise NoGpu(f"{gpu.name} has nothing to compute with: {'; '.join(str(reason) for reason in reasons.values())}")
