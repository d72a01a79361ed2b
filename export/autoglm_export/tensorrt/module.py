"""The TensorRT that an export builds with, or what to install."""

from __future__ import annotations

from typing import Any

from autoglm_engine.errors import ArtifactError
from autoglm_engine.runners.tensorrt.module import import_module, package_of

from autoglm_export.errors import ExportError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # runtime -> module
# Networks are always strongly typed, and attention takes lengths and a lower-right mask, since these versions.
OLDEST = {"tensorrt": (11, 0), "tensorrt_rtx": (1, 7)}


def load_tensorrt(module: str) -> Any:
    """The imported module. Raises ExportError with what to install."""
    package = package_of(module)
    install = f"pip install 'autoglm-triton[{package}]'"
    try:
        trt = import_module(module)
    except ModuleNotFoundError:
        raise ExportError(f"this export needs the package {package}: {install}") from None
    except ArtifactError as error:
        raise ExportError(f"{error}; {install}") from None
    if _numbers(trt.__version__) < OLDEST[module]:
        oldest = ".".join(str(number) for number in OLDEST[module])
        raise ExportError(f"{package} {trt.__version__} is too old; {oldest} or newer is needed: {install}")
    return trt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split(".")[:2])
