"""A stand-in for TensorRT whose engines torch computes, on the very stream and addresses that the runner gives it.

On the CPU over `FakeCuda`, where it is proved to work; on a card over `CardCuda`, where it proves the runner: order,
aliasing, overlap, graphs and the host's share of a step, on a machine that has a driver and torch and no TensorRT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from autoglm_engine.runners.cuda.api import Graph
from autoglm_engine.runners.cuda.bindings import CudaBindings

from tests.support.tensorrt.fake_tensorrt import FakeContext, FakeEngine, FakeSeverity, FakeTensorRT, Shape

_TYPES = {"float32": torch.float32, "int32": torch.int32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CardCuda(CudaBindings):
    """The real one, and what a stand-in for TensorRT asks of it besides."""

    is_capturing = False

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        self.is_capturing = True
        try:
            return super().capture(enqueue)
        finally:
            self.is_capturing = False

    def enqueue(self, operation: Callable[[], None]) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(self.stream)):
            operation()

    def bytes_at(self, address: int, num_bytes: int) -> Any:
        """A tensor of uint8 over memory that is somebody else's."""
        return torch.as_tensor(_Bytes(address, num_bytes), device="cuda")


class _Bytes:
    def __init__(self, address: int, num_bytes: int) -> None:
        interface = {"shape": (num_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = interface


class TorchContext(FakeContext):
    """Memory that a captured step uses is its own for good: torch would give it to others after the capture."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self._pool = torch.cuda.MemPool() if isinstance(self.trt.cuda, CardCuda) else None

    def execute_async_v3(self, stream: int) -> bool:
        """What torch cannot capture is refused, as TensorRT would."""
        try:
            return super().execute_async_v3(stream)
        except RuntimeError as error:
            self.engine.log.log(FakeSeverity.ERROR, " ".join(str(error).split()))
            return False

    def _run(self, inputs: Any, outputs: Any, activations: tuple[int, int]) -> None:
        with self._own_memory():
            self.network.compute(
                {name: self._view(name, *place) for name, place in inputs.items()},
                {name: self._view(name, *place) for name, place in outputs.items()},
            )

    @contextlib.contextmanager
    def _own_memory(self) -> Iterator[None]:
        if self._pool is None:
            yield
            return
        with torch.cuda.use_mem_pool(self._pool):
            yield

    def _view(self, name: str, address: int, shape: Shape) -> Any:
        dtype = _TYPES[str(np.dtype(self.network.tensors[name].dtype))]
        memory = self.trt.cuda.bytes_at(address, int(np.prod(shape)) * dtype.itemsize)
        content = torch.from_numpy(memory) if isinstance(memory, np.ndarray) else memory
        return content.view(dtype).reshape(shape)


class TorchEngine(FakeEngine):
    @property
    def context_kind(self) -> type[FakeContext]:
        return TorchContext


@dataclass
class TorchTensorRT(FakeTensorRT):
    """The module."""

    @property
    def engine_kind(self) -> type[FakeEngine]:
        return TorchEngine
