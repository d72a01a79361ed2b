"""GPUs, their driver and small settings, for tests of the GPU benchmark on machines without one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from autoglm_perf.gpu import device as gpu
from autoglm_perf.gpu.bandwidth import Bandwidth
from autoglm_perf.gpu.device import Gpu
from autoglm_perf.gpu.settings import GpuBenchSettings
from autoglm_perf.gpu.shapes import Shape

TINY = Shape(2, 64, 2, 1, 32, 96, 120)
ADA = Gpu("NVIDIA L4", (8, 9), 24 * 10**9, "13.0")
HOPPER = Gpu("NVIDIA H100", (9, 0), 80 * 10**9, "13.0")
TURING = Gpu("NVIDIA T4", (7, 5), 16 * 10**9, "13.0")
BANDWIDTH = Bandwidth(read=1e12, copy=0.9e12)


class FakeDriver(types.ModuleType):
    """cuda.bindings.driver of a machine with this GPU."""

    class CUdevice_attribute:
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = "major"
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = "minor"

    def __init__(self, status: int = 0, count: int = 1) -> None:
        super().__init__("cuda.bindings.driver")
        self.cuInit: Callable[..., Any] = lambda flags: (status,)
        self.cuDeviceGetCount = lambda: (0, count)
        self.cuDeviceGet = lambda index: (0, index)
        self.cuDeviceGetName = lambda size, device: (0, b"NVIDIA L4".ljust(size, b"\0"))
        self.cuDeviceGetAttribute = lambda name, device: (0, {"major": 8, "minor": 9}[name])
        self.cuDeviceTotalMem = lambda device: (0, 24 * 10**9)
        self.cuDriverGetVersion = lambda: (0, 13000)


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)


def with_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object() if name in names else None)


def settings(**changes: Any) -> GpuBenchSettings:
    small = {"past": 8, "prefill_tokens": 20, "prefill_chunk": 16, "warm_up": 2, "samples": 4, "rounds": 2}
    common = {"runtime": "tensorrt", "precision": "fp16", "shape": TINY, "batches": (1, 2), "max_length": 64}
    return GpuBenchSettings(**{**common, **small, **changes})
