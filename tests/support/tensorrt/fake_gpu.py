"""A GPU that never was, under ONNX Runtime's CPU kernels: what is bound as "cuda" must lie in what was allocated on
it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.errors import DeviceError

CUDA = "CUDAExecutionProvider"
_NAN = 0xFF  # two such bytes are a NaN in float16: memory that nobody cleared shows


@dataclass
class FakeGpu:
    """What `GpuMemory` uses of `autoglm_engine.runners.cuda.api.Cuda`, at addresses that the CPU's kernels can compute
    on.

    What is enqueued runs when somebody waits, and not before. `failure`: what clearing memory raises.
    """

    memory: int = 1 << 30  # bytes
    blocks: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    is_closed: bool = False
    failure: DeviceError | None = None
    copies: list[tuple[int, ...]] = field(default_factory=list)
    _queue: deque[Callable[[], None]] = field(default_factory=deque)

    def allocate(self, num_bytes: int) -> int:
        if num_bytes > self.memory:
            raise DeviceError(f"the GPU could not allocate {num_bytes} bytes", is_out_of_memory=True)
        block = np.full(num_bytes, _NAN, np.uint8)
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def clear(self, address: int, num_bytes: int) -> None:
        if self.failure:
            raise self.failure
        view = self.bytes_at(address, num_bytes)
        self._queue.append(lambda: view.fill(0))

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        assert width <= min(target_pitch, source_pitch)
        self.copies.append((target, target_pitch, source, source_pitch, width, height))
        for row in range(height):
            to = self.bytes_at(target + row * target_pitch, width)
            since = self.bytes_at(source + row * source_pitch, width)
            self._queue.append(lambda to=to, since=since: np.copyto(to, since))  # type: ignore[misc]

    def synchronize(self) -> None:
        assert not self.is_closed, "used after it was closed"
        while self._queue:
            self._queue.popleft()()

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True

    @property
    def is_idle(self) -> bool:
        return not self._queue

    def bytes_at(self, address: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        for begin, block in self.blocks.items():
            if begin <= address and address + num_bytes <= begin + len(block):
                return block[address - begin : address - begin + num_bytes]
        raise AssertionError(f"{num_bytes} bytes at {address:#x} lie in no block of the GPU")


class FakeBinding:
    """Checks each binding of a step, and hands it to a real one of the CPU."""

    def __init__(self, gpu: FakeGpu, real: Any) -> None:
        self.gpu, self.real = gpu, real
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}

    def bind_input(self, name: str, device: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._check(name, "past_", device, dtype, shape, address)
        self.inputs[name] = address
        self.real.bind_input(name, "cpu", device_id, dtype, shape, address)

    def bind_output(self, name: str, device: str, device_id: int, dtype: Any, shape: Any, address: int) -> None:
        self._check(name, "present_", device, dtype, shape, address)
        self.outputs[name] = address
        self.real.bind_output(name, "cpu", device_id, dtype, shape, address)

    def check_in_place(self) -> None:
        presents = {name for name in self.outputs if name.startswith("present_")}
        assert len(presents) == len(self.outputs) - 1, "everything but the logits is a cache"
        for name in presents:
            assert self.outputs[name] == self.inputs[name.replace("present_", "past_")], f"{name} is not in place"

    def _check(self, name: str, caches: str, device: str, dtype: Any, shape: Any, address: int) -> None:
        assert device == ("cuda" if name.startswith(caches) else "cpu"), f"{name} is on {device}"
        assert np.prod(shape) or name != "logits", "a kernel is launched on nothing"
        if device == "cuda":
            self.gpu.bytes_at(address, int(np.prod(shape)) * np.dtype(dtype).itemsize)


class FakeCudaSession:
    """`onnxruntime.InferenceSession` with CUDA kernels, computed by `real`."""

    def __init__(self, gpu: FakeGpu, real: Any) -> None:
        self.gpu, self.real = gpu, real
        self.failure: Exception | None = None

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return list(self.real.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.real.get_outputs())

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.gpu, self.real.io_binding())

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        assert self.gpu.is_idle, "a copy may still be under way"
        binding.check_in_place()
        if self.failure:
            raise self.failure
        self.real.run_with_iobinding(binding.real)
