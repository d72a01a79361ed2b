"""The seam between a checkpoint and the runtimes it can be lowered to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from autoglm_engine.core import TokenIds
from autoglm_engine.runners.registry import installed_version

from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec

from .errors import ExportError, InvalidOption

Progress = Callable[[str, float], None]  # name of the stage, fraction of it that is done


def no_progress(stage: str, fraction: float) -> None:
    """For callers that show nothing."""


def image_details(spec: ModelSpec) -> dict[str, Any]:
    """What `Manifest.runtime_details` say of a decoder that takes images."""
    return {"feature_size": spec.feature_size} if spec.takes_images else {}


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
        **options: Any,
    ) -> dict[str, Any]:
        """Write the runtime's files into `folder` and return what its runner must know (`Manifest.runtime_details`).

        `texts` are token ids that quantised weights may be fitted to, for the precisions of `Runtime.calibrated`.
        `cache_dtype` among it is the type of the key/value cache, float32 unless given. `options`: those of
        `Runtime.options` that the user gave.
        """
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a lowering is, and what it takes. `distribution` is the package whose version must match where the artifact
    runs, `extra` the extra of this distribution that installs it."""

    module: str
    function: str
    distribution: str
    precisions: tuple[str, ...]
    default_precision: str
    options: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()  # precisions that need a calibration text
    rotated: tuple[str, ...] = ()  # precisions whose residual stream is turned, by `quantize.rotation`
    prefill_chunk: int = 128
    has_reference: bool = False  # whether it writes what a GPU is checked by, which a text makes stronger
    extra: str = "export"
    host_cache: Mapping[str, int] = field(default_factory=dict)  # precision -> bytes of a key's value; none on a GPU

    def load(self) -> Lowering:
        try:
            module = importlib.import_module(f"autoglm_export.{self.module}")
        except ModuleNotFoundError as error:
            raise self._needs(error.name or self.module) from None
        return cast(Lowering, getattr(module, self.function))

    def version(self) -> str:
        if (version := installed_version(self.distribution)) is None:
            raise self._needs(self.distribution)
        return version

    def _needs(self, package: str) -> ExportError:
        return ExportError(f"this export needs the package {package}: pip install 'autoglm-triton[{self.extra}]'")


AUTO = "auto"
_TENSORRT_OPTIONS = (
    "num_candidates",
    "kv_dtype",
    "compute_capabilities",
    "weight_streaming",
    "int4_rounding",
    "attention",
)
_TENSORRT_PRECISIONS = ("bf16", "fp16", "fp8", "int4")


def _tensorrt(function: str, package: str) -> Runtime:
    return Runtime(
        "tensorrt.lowering",
        function,
        package,
        _TENSORRT_PRECISIONS,
        default_precision="bf16",
        options=_TENSORRT_OPTIONS,
        calibrated=("fp8", "int4"),
        prefill_chunk=512,
        has_reference=True,
        extra=package,
    )


RUNTIMES = {
    "onnx": Runtime(
        "onnx.lowering",
        "write_onnx",
        "onnxruntime",
        ("fp32", "fp16", "int8"),
        default_precision="int8",
        calibrated=("int8",),
        rotated=("int8",),
        host_cache={"fp32": 4, "int8": 4},
    ),
    "native": Runtime(
        "native.lowering",
        "write_native",
        "autoglm-triton",
        ("int8",),
        default_precision="int8",
        calibrated=("int8",),
        rotated=("int8",),
        host_cache={"int8": 2},
    ),
    "tensorrt": _tensorrt("write_tensorrt", "tensorrt"),
    "tensorrt-rtx": _tensorrt("write_tensorrt_rtx", "tensorrt-rtx"),
}


def runtime_named(name: str, precision: str | None) -> Runtime:
    """Raises InvalidOption for a runtime that is not known, or that does not compute in `precision` (None: its
    default)."""
    runtime = RUNTIMES.get(name)
    if runtime is None:
        raise InvalidOption(f"the runtime {name!r} is not known; allowed are {', '.join((AUTO, *RUNTIMES))}")
    if precision is not None and precision not in runtime.precisions:
        raise InvalidOption(
            f"the runtime {name} has no precision {precision!r}; allowed are {', '.join(runtime.precisions)}"
        )
    return runtime


def check_installed(name: str, precision: str | None) -> None:
    """Raises ExportError where a package is missing that the runtime's export needs, and as `runtime_named` does."""
    runtime = runtime_named(name, precision)
    runtime.version()
    runtime.load()
