"""The binding to CUDA, on a stand-in for NVIDIA's package: what is passed on, and what becomes of each status."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.bindings import CudaBindings


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


RESULTS: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (1,),
    "cudaDriverGetVersion": (13000,),
    "cudaRuntimeGetVersion": (13050,),
    "cudaStreamCreateWithFlags": (81,),
    "cudaMemGetInfo": (300, 1000),
    "cudaMalloc": (0x7000,),
    "cudaEventCreateWithFlags": (41,),
    "cudaStreamEndCapture": (61,),
    "cudaGraphInstantiate": (62,),
    "cudaGetErrorString": (b"something is wrong",),
}


@dataclass
class FakeRuntime:
    """`cuda.bindings.runtime`: functions return (status, *results); after a status that is not 0, results are None."""

    statuses: dict[str, Status] = field(default_factory=dict)
    results: dict[str, tuple[Any, ...]] = field(default_factory=lambda: dict(RESULTS))
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    cudaError_t: Any = Status
    cudaStreamNonBlocking: int = 1
    cudaEventDisableTiming: int = 2
    cudaMemcpyKind: Any = field(default_factory=lambda: SimpleNamespace(cudaMemcpyDefault=4))
    cudaStreamCaptureMode: Any = field(default_factory=lambda: SimpleNamespace(cudaStreamCaptureModeThreadLocal=1))
    cudaDeviceAttr: Any = field(
        default_factory=lambda: SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
        )
    )

    def __post_init__(self) -> None:
        self._pinned = ctypes.create_string_buffer(4096)
        self.results["cudaMallocHost"] = (ctypes.addressof(self._pinned),)

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            results = self.results.get(name, ())
            if name == "cudaDeviceGetAttribute":
                results = (arguments[0] - 67,)
            if status := self.statuses.get(name, Status.cudaSuccess):
                return (status, *(None for _ in results))
            return (Status.cudaSuccess, *results)

        return function


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    made = FakeRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    return made


def last(runtime: FakeRuntime, act: Callable[[], object]) -> tuple[Any, ...]:
    """The call that `act` ends with."""
    act()
    return runtime.calls[-1]


# ---- what is passed on


def test_every_call_goes_to_one_stream(runtime: FakeRuntime) -> None:
    cuda: Cuda = CudaBindings()
    assert ("cudaSetDevice", 0) in runtime.calls
    assert cuda.stream == 81
    assert last(runtime, lambda: cuda.copy(1, 2, 3)) == ("cudaMemcpyAsync", 1, 2, 3, 4, 81)
    assert last(runtime, lambda: cuda.copy_rows(1, 2, 3, 4, 5, 6)) == ("cudaMemcpy2DAsync", 1, 2, 3, 4, 5, 6, 4, 81)
    assert last(runtime, lambda: cuda.clear(1, 2)) == ("cudaMemsetAsync", 1, 0, 2, 81)
    assert last(runtime, lambda: cuda.record(41)) == ("cudaEventRecord", 41, 81)
    assert last(runtime, lambda: cuda.wait(41)) == ("cudaEventSynchronize", 41)
    assert last(runtime, lambda: cuda.launch(62)) == ("cudaGraphLaunch", 62, 81)
    assert last(runtime, cuda.synchronize) == ("cudaStreamSynchronize", 81)
    assert last(runtime, cuda.close) == ("cudaStreamDestroy", 81)
    assert last(runtime, cuda.close) == ("cudaStreamDestroy", 81)
    assert [call[0] for call in runtime.calls].count("cudaStreamDestroy") == 1


def test_results_are_plain_values(runtime: FakeRuntime) -> None:
    cuda = CudaBindings()
    assert cuda.compute_capability == "8.9"
    assert cuda.free_memory() == 300
    assert cuda.allocate(16) == 0x7000
    assert cuda.create_event() == 41


def test_pinned_memory_is_an_array_of_its_bytes(runtime: FakeRuntime) -> None:
    cuda = CudaBindings()
    address = runtime.results["cudaMallocHost"][0]
    runtime._pinned[0:4] = b"\x07\x07\x07\x07"
    memory = cuda.allocate_pinned(256)
    assert memory.dtype == np.uint8
    assert memory.shape == (256,)
    assert not memory.any()
    assert memory.ctypes.data == address
    memory[3] = 9
    assert runtime._pinned[3] == b"\x09"
    cuda.free_pinned(memory)
    assert runtime.calls[-1] == ("cudaFreeHost", address)


def test_a_capture_becomes_a_graph(runtime: FakeRuntime) -> None:
    cuda = CudaBindings()
    graph = cuda.capture(lambda: cuda.copy(1, 2, 3))
    assert graph == 62
    assert [call[0] for call in runtime.calls[-5:]] == [
        "cudaStreamBeginCapture",
        "cudaMemcpyAsync",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]


# ---- what fails


@pytest.mark.parametrize(
    ("name", "act", "message"),
    [
        ("cudaMalloc", lambda cuda: cuda.allocate(12), "the GPU could not allocate 12 bytes: something is wrong"),
        ("cudaMallocHost", lambda cuda: cuda.allocate_pinned(12), "could not allocate 12 pinned bytes"),
        ("cudaMemcpyAsync", lambda cuda: cuda.copy(1, 2, 3), "could not copy: something"),
        ("cudaEventSynchronize", lambda cuda: cuda.wait(1), "could not wait for a step: something"),
        ("cudaGraphLaunch", lambda cuda: cuda.launch(1), "could not launch a graph: something"),
        ("cudaMemGetInfo", lambda cuda: cuda.free_memory(), "could not tell its free memory"),
    ],
)
def test_a_status_becomes_one_sentence(
    runtime: FakeRuntime, name: str, act: Callable[[CudaBindings], object], message: str
) -> None:
    cuda = CudaBindings()
    runtime.statuses[name] = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceError, match=message) as caught:
        act(cuda)
    assert not caught.value.is_out_of_memory
    runtime.statuses[name] = Status.cudaErrorMemoryAllocation
    with pytest.raises(DeviceError) as caught:
        act(cuda)
    assert caught.value.is_out_of_memory


@pytest.mark.parametrize("graph", [0, 61])
def test_a_capture_that_fails_inside_is_ended_and_tells_what_failed(runtime: FakeRuntime, graph: int) -> None:
    cuda = CudaBindings()
    runtime.results["cudaStreamEndCapture"] = (graph,)
    runtime.statuses["cudaMemcpyAsync"] = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceError, match="could not copy"):
        cuda.capture(lambda: cuda.copy(1, 2, 3))
    names = [call[0] for call in runtime.calls]
    assert names.count("cudaStreamEndCapture") == 1
    assert names.count("cudaGraphDestroy") == bool(graph)


def test_a_capture_that_was_invalidated_is_told(runtime: FakeRuntime) -> None:
    cuda = CudaBindings()
    runtime.statuses["cudaStreamEndCapture"] = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceError, match="could not end a capture"):
        cuda.capture(lambda: None)
    runtime.statuses["cudaMemcpyAsync"] = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceError, match="could not copy"):
        cuda.capture(lambda: cuda.copy(1, 2, 3))


def test_a_graph_that_cannot_be_instantiated_leaves_nothing(runtime: FakeRuntime) -> None:
    cuda = CudaBindings()
    runtime.statuses["cudaGraphInstantiate"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(DeviceError, match="could not instantiate a graph"):
        cuda.capture(lambda: None)
    assert ("cudaGraphDestroy", 61) in runtime.calls


# ---- no usable GPU


@pytest.mark.parametrize(
    ("status", "count", "driver", "message"),
    [
        (Status.cudaErrorInsufficientDriver, 0, 0, "no NVIDIA driver answers on this machine"),
        (
            Status.cudaErrorInsufficientDriver,
            0,
            12040,
            r"NVIDIA driver serves CUDA 12\.4, cuda-python needs 13\.5: update the driver",
        ),
        (Status.cudaErrorNoDevice, 0, 13000, "no GPU answers on this machine"),
        (Status.cudaSuccess, 0, 13000, "no GPU answers on this machine"),
        (Status.cudaErrorIllegalAddress, 0, 13000, "the GPU could not be found: something is wrong"),
    ],
)
def test_a_machine_without_a_usable_gpu_is_told_apart(
    runtime: FakeRuntime, status: Status, count: int, driver: int, message: str
) -> None:
    runtime.statuses["cudaGetDeviceCount"] = status
    runtime.results |= {"cudaGetDeviceCount": (count,), "cudaDriverGetVersion": (driver,)}
    with pytest.raises(ArtifactError, match=message):
        CudaBindings()
    assert "cudaStreamCreateWithFlags" not in [call[0] for call in runtime.calls]


def test_a_gpu_that_may_not_be_used_is_told(runtime: FakeRuntime) -> None:
    runtime.statuses["cudaSetDevice"] = Status.cudaErrorIllegalAddress
    with pytest.raises(ArtifactError, match="the GPU could not be used: something is wrong"):
        CudaBindings()


def test_a_package_that_finds_no_driver_library_is_told(runtime: FakeRuntime) -> None:
    def missing() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    runtime.__dict__["cudaGetDeviceCount"] = missing
    with pytest.raises(ArtifactError, match=r"no NVIDIA driver answers on this machine: Failed to dlopen"):
        CudaBindings()


def test_the_real_package_has_what_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name that the stand-in was asked for while all calls were made."""
    real = pytest.importorskip("cuda.bindings.runtime")
    fake = FakeRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    cuda = CudaBindings()
    memory, graph = cuda.allocate_pinned(8), cuda.capture(lambda: cuda.copy(1, 2, 3))
    for act in (cuda.free_memory, cuda.synchronize, cuda.create_event, lambda: cuda.free_pinned(memory)):
        act()
    for act in (lambda: cuda.free(1), lambda: cuda.clear(1, 2), lambda: cuda.copy_rows(1, 2, 3, 4, 5, 6)):
        act()
    for act in (lambda: cuda.record(1), lambda: cuda.wait(1), lambda: cuda.destroy_event(1)):
        act()
    for act in (lambda: cuda.launch(graph), lambda: cuda.destroy_graph(graph), lambda: cuda.compute_capability):
        act()
    cuda.close()
    names = {call[0] for call in fake.calls} | {"cudaGetErrorString", "cudaGetLastError"}
    constants = {"cudaStreamNonBlocking", "cudaEventDisableTiming"}
    assert not [name for name in names | constants if not hasattr(real, name)]
    assert real.cudaMemcpyKind.cudaMemcpyDefault and real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor and real.cudaError_t.cudaErrorNoDevice
