"""The seam between a checkpoint and the runtimes it can be lowered to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast

from .calibration import TokenIds
from .errors import ExportError, InvalidOption
from .native.compiler import can_build_here
from .spec import ModelSpec
from .weights import Array

Progress = Callable[[str, float], None]  # name of the stage, fraction of it that is done


def no_progress(stage: str, fraction: float) -> None:
    """For callers that show nothing."""


class CountedWeights(Mapping[str, Array]):
    """Weights that report how many of them were read."""

    def __init__(self, weights: Mapping[str, Array], stage: str, progress: Progress) -> None:
        self._weights, self._stage, self._progress, self._read = weights, stage, progress, 0

    def __getitem__(self, name: str) -> Array:
        self._read += 1
        self._progress(self._stage, min(1.0, self._read / len(self._weights)))
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Lowering(Protocol):
    def __call__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Array],
        folder: Path,
        *,
        precision: str,
        num_slots: int,
        max_length: int,
        prefill_chunk: int,
        texts: Sequence[TokenIds],
        progress: Progress,
    ) -> dict[str, Any]:
        """Write the runtime's files into `folder` and return what its runner must know (`Manifest.runtime_details`).

        `texts` are token ids that quantised weights may be fitted to.
        `cache_dtype` among it is the type of the key/value cache, float32 unless given.
        """
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a lowering is; `distribution` is the package whose version must match where the artifact runs."""

    module: str
    function: str
    distribution: str
    precisions: tuple[str, ...]

    def load(self) -> Lowering:
        try:
            module = importlib.import_module(f"autoglm_export.{self.module}")
        except ModuleNotFoundError as error:
            raise ExportError(
                f"this export needs the package {error.name}: pip install 'autoglm-triton[export]'"
            ) from None
        return cast(Lowering, getattr(module, self.function))

    def version(self) -> str:
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            raise ExportError(
                f"this export needs the package {self.distribution}: pip install 'autoglm-triton[export]'"
            ) from None


AUTO = "auto"
RUNTIMES = {
    "onnx": Runtime("onnx_lowering", "write_onnx", "onnxruntime", ("fp32", "int8")),
    "native": Runtime("native_lowering", "write_native", "autoglm-triton", ("int8",)),
}


def choose_runtime(name: str, precision: str) -> str:
    """`auto` made concrete: the native kernels where this machine can build them and they compute in `precision`, else
    ONNX Runtime, which runs anywhere. Another name is its own choice."""
    if name != AUTO:
        return name
    return "native" if precision in RUNTIMES["native"].precisions and can_build_here() else "onnx"


def runtime_named(name: str, precision: str) -> Runtime:
    """Raises InvalidOption for a runtime that is not known, or that does not compute in `precision`."""
    runtime = RUNTIMES.get(name)
    if runtime is None:
        raise InvalidOption(f"the runtime {name!r} is not known; allowed are {', '.join((AUTO, *RUNTIMES))}")
    if precision not in runtime.precisions:
        raise InvalidOption(f"the precision {precision!r} is not known; allowed are {', '.join(runtime.precisions)}")
    return runtime
