"""Asks NVIDIA's management library how busy the GPUs are, through `pynvml` or else `nvidia-smi`."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_QUERY = ["--query-gpu=utilization.gpu,name", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class GpuMeter:
    """`utilisation` gives 0 ... 1 of the busiest GPU, None where it cannot be read any more."""

    name: str
    utilisation: Callable[[], float | None]


def find_gpu() -> GpuMeter | None:
    return _from_library() or _from_command()


def parse_query(text: str) -> tuple[float, str] | None:
    """The busiest GPU of what nvidia-smi printed: (0 ... 1, its name)."""
    rows = [line.split(",", 1) for line in text.splitlines() if line.count(",")]
    readable = [(int(percent) / 100, name.strip()) for percent, name in rows if percent.strip().isdigit()]
    return max(readable, default=None)


def _from_library() -> GpuMeter | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        name = nvml.nvmlDeviceGetName(handles[0])
    except Exception:  # not installed, no driver, no GPU: each has a class of its own
        return None

    def read() -> float | None:
        try:
            return float(max(nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles)) / 100
        except nvml.NVMLError:
            return None

    return GpuMeter(name if isinstance(name, str) else name.decode(), read)


def _from_command() -> GpuMeter | None:
    program = shutil.which("nvidia-smi")
    if program is None or (first := _query(program)) is None:
        return None

    def read() -> float | None:
        answer = _query(program)
        return answer[0] if answer else None

    return GpuMeter(first[1], read)


def _query(program: str) -> tuple[float, str] | None:
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_query(done.stdout) if done.returncode == 0 else None
