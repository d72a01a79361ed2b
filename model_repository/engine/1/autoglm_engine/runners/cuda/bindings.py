"""`Cuda` on NVIDIA's own binding, the package cuda-python: the only place that calls it.

No wait has a limit: `step_watch` ends a process whose GPU hangs.
Every function there returns a tuple that begins with its status; `_checked` makes an exception of one that is not 0.
The GPU is device 0 of the process (`CUDA_VISIBLE_DEVICES` chooses), which every thread uses unless it says otherwise.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_engine.errors import ArtifactError, DeviceError

from .api import Device, Event, Graph, HostBytes

_DEVICE = 0
_DRIVER_FILE = Path("/proc/driver/nvidia/version")  # "NVRM version: NVIDIA UNIX ... Kernel Module  580.65.06  ..."


class CudaBindings:
    """See `cuda.Cuda`."""

    def __init__(self) -> None:
        """Raises ArtifactError with one sentence where this machine has no usable GPU."""
        self._runtime = _import_runtime()
        _check_driver(self._runtime)
        self._pinned: dict[int, int] = {}  # where an array begins -> the address to free
        flags = self._runtime.cudaStreamNonBlocking
        try:
            self._checked("be used", self._runtime.cudaSetDevice(_DEVICE))
            self._stream: Any = self._checked("create a stream", self._runtime.cudaStreamCreateWithFlags(flags))
        except DeviceError as error:
            raise ArtifactError(str(error)) from error

    @property
    def stream(self) -> int:
        return int(self._stream)

    @property
    def compute_capability(self) -> str:
        kind = self._runtime.cudaDeviceAttr
        parts = (kind.cudaDevAttrComputeCapabilityMajor, kind.cudaDevAttrComputeCapabilityMinor)
        return ".".join(
            str(self._checked("tell its kind", self._runtime.cudaDeviceGetAttribute(part, _DEVICE))) for part in parts
        )

    @property
    def device(self) -> Device:
        properties = self._checked("tell its name", self._runtime.cudaGetDeviceProperties(_DEVICE))
        return Device(_text(properties.name), self.compute_capability, self._driver())

    def _driver(self) -> str:
        """Its own version where the system tells it, else the CUDA that it serves."""
        if _DRIVER_FILE.exists() and (
            found := re.search(r"Module\s+(?:for \S+\s+)?(\d+[\d.]*)", _DRIVER_FILE.read_text())
        ):
            return found[1]
        return f"for CUDA {_version(self._checked('tell its driver', self._runtime.cudaDriverGetVersion()))}"

    def free_memory(self) -> int:
        free, _ = self._checked("tell its free memory", self._runtime.cudaMemGetInfo())
        return int(free)

    # ---- memory

    def allocate(self, num_bytes: int) -> int:
        return int(self._checked(f"allocate {num_bytes} bytes", self._runtime.cudaMalloc(num_bytes)))

    def free(self, address: int) -> None:
        self._checked("free memory", self._runtime.cudaFree(address))

    def allocate_pinned(self, num_bytes: int) -> HostBytes:
        address = self._checked(f"allocate {num_bytes} pinned bytes", self._runtime.cudaMallocHost(num_bytes))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(int(address)))
        memory[:] = 0
        self._pinned[memory.ctypes.data] = int(address)
        return memory

    def free_pinned(self, memory: HostBytes) -> None:
        self._checked("free pinned memory", self._runtime.cudaFreeHost(self._pinned.pop(memory.ctypes.data)))

    def clear(self, address: int, num_bytes: int) -> None:
        self._checked("clear memory", self._runtime.cudaMemsetAsync(address, 0, num_bytes, self._stream))

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._checked("copy", self._runtime.cudaMemcpyAsync(target, source, num_bytes, kind, self._stream))

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        status = self._runtime.cudaMemcpy2DAsync(
            target, target_pitch, source, source_pitch, width, height, kind, self._stream
        )
        self._checked("copy rows", status)

    # ---- order

    def create_event(self) -> Event:
        flags = self._runtime.cudaEventDisableTiming
        return self._checked("create an event", self._runtime.cudaEventCreateWithFlags(flags))

    def destroy_event(self, event: Event) -> None:
        self._checked("destroy an event", self._runtime.cudaEventDestroy(event))

    def record(self, event: Event) -> None:
        self._checked("record an event", self._runtime.cudaEventRecord(event, self._stream))

    def wait(self, event: Event) -> None:
        self._checked("wait for a step", self._runtime.cudaEventSynchronize(event))

    def synchronize(self) -> None:
        self._checked("be waited for", self._runtime.cudaStreamSynchronize(self._stream))

    # ---- graphs

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Other threads of the process may go on with what a capture forbids this one."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked("begin a capture", self._runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        except BaseException:
            self._abandon_capture()
            raise
        graph = self._checked("end a capture", self._runtime.cudaStreamEndCapture(self._stream))
        try:
            return self._checked("instantiate a graph", self._runtime.cudaGraphInstantiate(graph, 0))
        finally:
            self._runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Graph) -> None:
        self._checked("launch a graph", self._runtime.cudaGraphLaunch(graph, self._stream))

    def destroy_graph(self, graph: Graph) -> None:
        self._checked("destroy a graph", self._runtime.cudaGraphExecDestroy(graph))

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._checked("destroy the stream", self._runtime.cudaStreamDestroy(stream))

    def _abandon_capture(self) -> None:
        """The stream runs again from here on, whatever was captured."""
        status, graph = self._runtime.cudaStreamEndCapture(self._stream)
        if not status and int(graph):  # a capture that failed leaves none
            self._runtime.cudaGraphDestroy(graph)
        self._runtime.cudaGetLastError()

    def _checked(self, action: str, result: tuple[Any, ...]) -> Any:
        """The values after the status: none, one or a tuple. Raises DeviceError unless the status is 0."""
        status, *values = result
        if status:
            self._runtime.cudaGetLastError()  # forgets it, unless it is final
            raise _error(self._runtime, action, status)
        return values[0] if len(values) == 1 else tuple(values)


def _error(runtime: Any, action: str, status: Any) -> DeviceError:
    _, meaning = runtime.cudaGetErrorString(status)
    meaning = _text(meaning)
    is_out_of_memory = status == runtime.cudaError_t.cudaErrorMemoryAllocation
    return DeviceError(f"the GPU could not {action}: {meaning}", is_out_of_memory=is_out_of_memory)


def _text(value: Any) -> str:
    """The binding gives C strings as bytes, with or without what is behind their end."""
    return value.split(b"\0")[0].decode(errors="replace") if isinstance(value, bytes) else str(value)


def _import_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        raise ArtifactError("the artifact needs the package cuda-python, which is not installed") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise ArtifactError(f"cuda-python is installed and cannot be loaded: {error}") from None


def _check_driver(runtime: Any) -> None:
    try:
        status, count = runtime.cudaGetDeviceCount()
        _, driver = runtime.cudaDriverGetVersion()
        _, needed = runtime.cudaRuntimeGetVersion()
    except RuntimeError as error:  # what cuda-python raises where it finds no libcuda at all
        raise ArtifactError(f"no NVIDIA driver answers on this machine: {error}") from None
    if not driver:
        raise ArtifactError("no NVIDIA driver answers on this machine, which the artifact needs")
    if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
        raise ArtifactError(
            f"this machine's NVIDIA driver serves CUDA {_version(driver)}, cuda-python needs {_version(needed)}: "
            "update the driver"
        )
    if status == runtime.cudaError_t.cudaErrorNoDevice or (not status and not count):
        raise ArtifactError("no GPU answers on this machine, which the artifact needs")
    if status:
        raise ArtifactError(str(_error(runtime, "be found", status)))


def _version(number: int) -> str:
    """CUDA's numbers are 1000 * major + 10 * minor."""
    return f"{number // 1000}.{number % 1000 // 10}"
