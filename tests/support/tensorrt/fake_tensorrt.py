"""A TensorRT whose engines are Python functions. It keeps to the rules that the real one has and does not always check:
shapes inside a profile, an address for every tensor, aligned; a context is left alone once a graph was captured from
it; all contexts overwrite their activations. Work runs on the stream of a `FakeCuda`, which is to say later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from autoglm_engine.runners.cuda.api import ALIGNMENT

from tests.support.tensorrt.fake_cuda import FakeCuda

Arrays = Mapping[str, npt.NDArray[Any]]
Compute = Callable[[Arrays, Arrays], None]  # inputs and outputs: views of device memory
Shape = tuple[int, ...]
PLAN = b"a plan for the fake TensorRT"


@dataclass(frozen=True)
class FakeTensor:
    dtype: Any
    shape: Shape  # -1: inside the profiles' ranges
    is_input: bool
    aliases: str = ""  # the input that must have the same address


@dataclass(frozen=True)
class FakeNetwork:
    """`output_shapes`: name -> shape, from the inputs' shapes. `profiles[i][name]`: smallest and largest shape."""

    tensors: Mapping[str, FakeTensor]
    profiles: tuple[Mapping[str, tuple[Shape, Shape]], ...]
    output_shapes: Callable[[Mapping[str, Shape]], Mapping[str, Shape]]
    compute: Compute
    activation_bytes: tuple[int, ...] = (1000, 3000, 2000)  # a profile


class FakeSeverity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class FakeILogger:
    INTERNAL_ERROR, ERROR, WARNING = FakeSeverity


class Strategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class Specialisation(IntEnum):
    LAZY = 0
    EAGER = 1


class GraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class SeekPosition(IntEnum):
    SET = 0
    CUR = 1
    END = 2


class FakeStreamReader:
    """`IStreamReaderV2`, whose base class must be initialised."""

    is_initialised = False

    def __init__(self) -> None:
        self.is_initialised = True


@dataclass
class FakeTensorRT:
    """The module. `refuses`: names of calls that fail as TensorRT's do, with a message in the log."""

    cuda: FakeCuda
    network: FakeNetwork
    refuses: set[str] = field(default_factory=set)
    is_capturable: bool | None = True  # None: this TensorRT cannot be asked
    contexts: list[FakeContext] = field(default_factory=list)
    engine: FakeEngine | None = None
    was_streamed: bool = False
    __version__: str = "11.4.0"
    ILogger: Any = FakeILogger
    ExecutionContextAllocationStrategy: Any = Strategy
    has_stream_readers: bool = True
    SeekPosition: Any = SeekPosition

    @property
    def engine_kind(self) -> type[FakeEngine]:
        return FakeEngine

    @property
    def IStreamReaderV2(self) -> Any:
        if not self.has_stream_readers:
            raise AttributeError("IStreamReaderV2")
        return FakeStreamReader

    def Runtime(self, log: Any) -> FakeRuntime:
        return FakeRuntime(self, log)


@dataclass
class FakeRTX(FakeTensorRT):
    """`compiles`: what a runtime cache holds in the end. `accepts`: the kept one is of this version and GPU."""

    compiles: bytes = b"kernels"
    accepts: bool = True
    caches: list[FakeRuntimeCache] = field(default_factory=list)
    DynamicShapesKernelSpecializationStrategy: Any = Specialisation
    CudaGraphStrategy: Any = GraphStrategy


class FakeRuntimeCache:
    def __init__(self, trt: FakeRTX) -> None:
        self.trt, self.read = trt, b""
        trt.caches.append(self)

    def deserialize(self, blob: bytes) -> bool:
        self.read = bytes(blob)
        return self.trt.accepts

    def serialize(self) -> bytes | None:
        return None if "serialize" in self.trt.refuses else self.trt.compiles


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log = trt, log
        if "Runtime" in trt.refuses:
            log.log(FakeSeverity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, plan: Any) -> FakeEngine | None:
        self.trt.was_streamed = isinstance(plan, FakeStreamReader)
        if (self._streamed(plan) if self.trt.was_streamed else bytes(memoryview(plan))) != PLAN:
            self.log.log(FakeSeverity.ERROR, "the magic tag\nis wrong")
            return None
        self.trt.engine = self.trt.engine_kind(self.trt, self.log)
        return self.trt.engine

    def _streamed(self, reader: Any) -> bytes:
        """As TensorRT reads: to the end to learn the length, from the begin, and again what came short."""
        assert reader.is_initialised
        assert reader.seek(0, SeekPosition.END) and reader.seek(0, SeekPosition.SET)
        assert not reader.seek(1 << 40, SeekPosition.SET) and reader.seek(0, SeekPosition.SET)
        content = b""
        while piece := reader.read(1 << 40, self.trt.cuda.stream):
            content += piece
        assert reader.seek(-len(content), SeekPosition.CUR)
        assert reader.read(len(content), self.trt.cuda.stream)[:1] == content[:1]
        return content


class FakeConfiguration:
    strategy = Strategy.STATIC
    dynamic_shapes_kernel_specialization_strategy = Specialisation.LAZY
    cuda_graph_strategy: GraphStrategy | None = None
    cache: FakeRuntimeCache | None = None

    def __init__(self, trt: FakeRTX) -> None:
        self.trt = trt

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self.trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return "set_runtime_cache" not in self.trt.refuses

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy


class FakeEngine:
    streamable_weights_size = 1 << 20

    @property
    def context_kind(self) -> type[FakeContext]:
        return FakeContext

    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self.trt, self.log, self.network = trt, log, trt.network
        self._names = list(trt.network.tensors)
        self.num_io_tensors = len(self._names)
        self.weight_streaming_budget_v2 = -1

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_shape(self, name: str) -> Shape:
        return self.network.tensors[name].shape

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.network.activation_bytes[profile]

    def get_weight_streaming_automatic_budget(self) -> int:
        return 3 << 18

    def create_runtime_config(self) -> FakeConfiguration:
        assert isinstance(self.trt, FakeRTX)
        return FakeConfiguration(self.trt)

    def create_execution_context(self, how: Strategy | FakeConfiguration) -> FakeContext | None:
        strategy = how.strategy if isinstance(how, FakeConfiguration) else how
        assert strategy is Strategy.USER_MANAGED, "a context allocates its own activations"
        if "create_execution_context" in self.trt.refuses:
            self.log.log(FakeSeverity.ERROR, "out of memory")
            return None
        context = self.context_kind(self)
        if isinstance(how, FakeConfiguration):
            context.specialisation = how.dynamic_shapes_kernel_specialization_strategy
            assert how.cuda_graph_strategy is GraphStrategy.DISABLED and how.cache is self.trt.caches[0]
        self.trt.contexts.append(context)
        return context


class FakeContext:
    specialisation: Specialisation | None = None

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.trt, self.network = engine, engine.trt, engine.network
        self.profile = 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.num_enqueued = 0
        self.is_captured = self._is_warm = False
        self._activations = (0, 0)

    # ---- setting it up

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._change("set_optimization_profile_async")
        assert stream == self.trt.cuda.stream
        self.profile, self.shapes = profile, {}
        return profile < len(self.network.profiles)

    def set_device_memory(self, address: int, num_bytes: int) -> None:
        self._change("set_device_memory")
        assert num_bytes >= self.network.activation_bytes[self.profile], "the activations are too small"
        assert address % ALIGNMENT == 0
        self._activations = address, num_bytes

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        refused = self._change("set_input_shape")
        smallest, largest = self.network.profiles[self.profile][name]
        assert len(shape) == len(smallest)
        if refused or any(not low <= s <= high for low, s, high in zip(smallest, shape, largest, strict=True)):
            self.engine.log.log(FakeSeverity.ERROR, f"{name}: {shape} is not in {smallest} ... {largest}")
            return False
        self._is_warm = self._is_warm and self.shapes.get(name) == shape
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        refused = self._change("set_tensor_address")
        assert name in self.network.tensors, f"there is no tensor {name}"
        assert address % ALIGNMENT == 0, f"{name} is at {address:#x}, which is not aligned"
        self.addresses[name] = address
        return not refused

    def _change(self, name: str) -> bool:
        assert not self.is_captured, f"{name} on a context that a graph was captured from"
        return name in self.trt.refuses

    # ---- running it

    def __getattr__(self, name: str) -> Any:
        if name == "is_stream_capturable" and self.trt.is_capturable is not None:
            return lambda stream: self.trt.is_capturable
        raise AttributeError(name)

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.trt.cuda
        assert stream == cuda.stream
        name = "capture" if cuda.is_capturing else "execute_async_v3"
        if name in self.trt.refuses:
            self.engine.log.log(FakeSeverity.ERROR, f"{name} is refused")
            return False
        self._check_bindings()
        if cuda.is_capturing:
            assert self._is_warm, "a capture before the context ran once with these shapes"
            self.is_captured = True
        else:
            self.num_enqueued += 1
            self._is_warm = True
        inputs, outputs = self._bindings()
        activations = self._activations
        cuda.enqueue(lambda: self._run(inputs, outputs, activations))
        return True

    def _check_bindings(self) -> None:
        for name, tensor in self.network.tensors.items():
            assert name in self.addresses, f"{name} has no address"
            assert not tensor.is_input or name in self.shapes, f"{name} has no shape"
            assert not tensor.aliases or self.addresses[name] == self.addresses[tensor.aliases], f"{name} moved"
        assert self._activations[0], "there is no memory for activations"

    def _bindings(self) -> tuple[dict[str, tuple[int, Shape]], dict[str, tuple[int, Shape]]]:
        """Name -> address and shape, as they are now."""
        shapes = self.shapes | dict(self.network.output_shapes(self.shapes))
        bound = {name: (self.addresses[name], shapes[name]) for name in self.network.tensors}
        for name, (address, shape) in bound.items():
            self._view(name, address, shape)
        return (
            {name: place for name, place in bound.items() if self.network.tensors[name].is_input},
            {name: place for name, place in bound.items() if not self.network.tensors[name].is_input},
        )

    def _run(self, inputs: Any, outputs: Any, activations: tuple[int, int]) -> None:
        scratch = self.trt.cuda.bytes_at(*activations)
        scratch[:] = np.random.default_rng(self.num_enqueued).integers(0, 256, len(scratch), dtype=np.uint8)
        self.network.compute(
            {name: self._view(name, *place) for name, place in inputs.items()},
            {name: self._view(name, *place) for name, place in outputs.items()},
        )

    def _view(self, name: str, address: int, shape: Shape) -> npt.NDArray[Any]:
        dtype = np.dtype(self.network.tensors[name].dtype)
        memory = self.trt.cuda.bytes_at(address, int(np.prod(shape)) * dtype.itemsize)
        return memory.view(dtype).reshape(shape)
