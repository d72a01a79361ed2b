"""`onnx_memory.Gpu` on NVIDIA's own binding, the package cuda-python."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import ArtifactError, EngineError


def open_gpu() -> CudaGpu:
    """Raises ArtifactError with one sentence where this machine has no usable GPU."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        raise ArtifactError(
            "a GPU needs the package cuda-python, which is not installed: pip install 'autoglm-triton[onnx-gpu]'"
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise ArtifactError(f"cuda-python is installed and cannot be loaded: {error}") from None
    return CudaGpu(runtime)


class CudaGpu:
    """`runtime`: the module cuda.bindings.runtime, whose functions return a tuple that begins with a status."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._check_device()
        self._checked("choose the GPU", runtime.cudaSetDevice(0))
        flags = runtime.cudaStreamNonBlocking
        self._stream: Any = self._checked("create a stream", runtime.cudaStreamCreateWithFlags(flags))

    def allocate(self, num_bytes: int) -> int:
        return int(self._checked(f"allocate {num_bytes} bytes", self._runtime.cudaMalloc(num_bytes)))

    def free(self, address: int) -> None:
        self._checked("free memory", self._runtime.cudaFree(address))

    def clear(self, address: int, num_bytes: int) -> None:
        self._checked("clear memory", self._runtime.cudaMemsetAsync(address, 0, num_bytes, self._stream))

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        status = self._runtime.cudaMemcpy2DAsync(
            target, target_pitch, source, source_pitch, width, height, kind, self._stream
        )
        self._checked("copy rows", status)

    def synchronize(self) -> None:
        self._checked("finish its work", self._runtime.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        self._checked("destroy a stream", self._runtime.cudaStreamDestroy(self._stream))

    def _check_device(self) -> None:
        try:
            status, count = self._runtime.cudaGetDeviceCount()
        except RuntimeError as error:  # what cuda-python raises where it finds no driver's library
            raise ArtifactError(f"no NVIDIA driver answers on this machine: {error}") from None
        if status:
            raise ArtifactError(f"no GPU answers on this machine: {self._meaning(status)}")
        if not count:
            raise ArtifactError("this machine has no NVIDIA GPU that the process may use")

    def _checked(self, action: str, result: tuple[Any, ...]) -> Any:
        """The one value after the status, if any. Raises EngineError unless the status is 0."""
        status, *values = result
        if status:
            raise EngineError(f"the GPU could not {action}: {self._meaning(status)}")
        return values[0] if values else None

    def _meaning(self, status: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)
