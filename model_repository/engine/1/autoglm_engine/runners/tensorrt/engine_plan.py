"""An exported plan on a GPU: deserialised once, with the execution contexts that run it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from autoglm_engine.errors import ArtifactError, DeviceError
from autoglm_engine.runners.cuda.api import Cuda

from .kernel_cache import KernelCache
from .module import new_log, said
from .plan_reader import new_reader

DECODE, PREFILL, BATCHED_PREFILL = range(3)  # optimisation profiles of a decoder
_SPARE_BYTES = 512 << 20  # that weight streaming leaves to contexts and the driver, and free

_log = logging.getLogger(__name__)


class EnginePlan:
    """`activation_bytes`: of the block that the contexts share, since all of them run on one stream in turns."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        path: Path,
        kernels: KernelCache,
        *,
        check: Callable[[Any], None],
        num_profiles: int = 3,
        captured: Collection[int] = (DECODE,),
    ) -> None:
        """`kernels`: for a runtime that compiles. `check`: raises ArtifactError for an engine of other tensors.
        `captured`: the profiles whose calls become graphs. Raises ArtifactError with one sentence where TensorRT
        refuses the plan."""
        self.trt = trt
        self._num_profiles, self._captured = num_profiles, captured
        self._kernels = kernels
        self._compiled: Any = None  # `trt.IRuntimeCache`, once there is a context
        self._cuda = cuda
        self._trt_log = new_log(trt)
        self._runtime, self._engine = self._deserialise(path)
        self.weight_bytes = path.stat().st_size  # a plan is nearly all weights
        check(self._engine)

    @property
    def activation_bytes(self) -> int:
        profiles = range(self._num_profiles)
        return max(int(self._engine.get_device_memory_size_for_profile_v2(profile)) for profile in profiles)

    def stream_weights(self, reserved_bytes: int) -> None:
        """Keep as many weights on the device as fit beside `reserved_bytes` that are to be allocated. Comes before the
        first context."""
        engine = self._engine
        room = self._cuda.free_memory() - reserved_bytes - self.activation_bytes - _SPARE_BYTES
        automatic = int(engine.get_weight_streaming_automatic_budget())
        budget = max(min(room, automatic, int(engine.streamable_weights_size)), 0)
        engine.weight_streaming_budget_v2 = budget
        self.weight_bytes = budget
        _log.info("weights: %.3g GB of %.3g GB stay on the GPU", budget / 1e9, engine.streamable_weights_size / 1e9)

    def create_context(self, profile: int, activations: int, activation_bytes: int) -> Any:
        """An execution context of `profile` over the shared block. Raises ArtifactError where it cannot be made."""
        context = self._engine.create_execution_context(self._configuration(profile))
        if context is None:
            raise ArtifactError(f"TensorRT cannot prepare the artifact's engine: {self.said()}")
        if not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise ArtifactError(f"the artifact's engine has no profile {profile}: {self.said()}")
        context.set_device_memory(activations, activation_bytes)
        return context

    def said(self) -> str:
        """Why TensorRT failed last."""
        return said(self._trt_log)

    def keep_kernels(self) -> None:
        """For the next start, where this runtime compiles."""
        if self._compiled is None:
            return
        if (serialised := self._compiled.serialize()) is None:
            _log.warning("TensorRT-RTX does not give what it compiled: %s", self.said())
            return
        self._kernels.write(bytes(memoryview(serialised)))

    def close(self) -> None:
        """The contexts are gone by now. The log stays until the runtime is."""
        self._compiled = None
        self._engine = None
        self._runtime = None

    def _configuration(self, profile: int) -> Any:
        """TensorRT-RTX compiles kernels here: those of decode at once, for a graph keeps the kernels that it was
        captured with; those of prefill and towers in the background, since each length has its own. It captures no
        graphs of its own: ours hold the whole step, and prefill's addresses move."""
        user_managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self.trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return user_managed
        configuration = self._engine.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(user_managed)
        kind = strategies.EAGER if profile in self._captured else strategies.LAZY
        configuration.dynamic_shapes_kernel_specialization_strategy = kind
        configuration.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED
        if self._compiled is None:
            self._compiled = self._kept_kernels(configuration)
        if not configuration.set_runtime_cache(self._compiled):
            raise ArtifactError(f"TensorRT-RTX takes no cache for its kernels: {self.said()}")
        return configuration

    def _kept_kernels(self, configuration: Any) -> Any:
        """One cache for all contexts."""
        compiled = configuration.create_runtime_cache()
        if (kept := self._kernels.read()) and not compiled.deserialize(kept):
            _log.warning("%s is of no use to this TensorRT-RTX: %s", self._kernels.path, self.said())
        return compiled

    def _deserialise(self, path: Path) -> tuple[Any, Any]:
        try:
            runtime = self.trt.Runtime(self._trt_log)
            engine = self._read(runtime, path)
        except DeviceError:
            raise
        except Exception as error:  # pybind turns a null pointer into a TypeError
            raise ArtifactError(f"TensorRT does not start on this machine: {error}; {self.said()}") from None
        if engine is None:
            raise ArtifactError(f"TensorRT cannot load the artifact's engine: {self.said()}")
        return runtime, engine

    def _read(self, runtime: Any, path: Path) -> Any:
        """A binding without stream readers gets the file mapped into memory."""
        if not hasattr(self.trt, "IStreamReaderV2"):
            return runtime.deserialize_cuda_engine(np.memmap(path, np.uint8, mode="r"))
        reader = new_reader(self.trt, path)
        try:
            return runtime.deserialize_cuda_engine(reader)
        finally:
            reader.close()
