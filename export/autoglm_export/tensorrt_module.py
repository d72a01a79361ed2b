"""Which TensorRT an export or a runner uses: the one place that imports it. Both modules have the same Python API."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import ExportError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # runtime -> module
EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module -> extra of this distribution
# Networks are always strongly typed, and attention takes lengths and a lower-right mask, since these versions.
OLDEST = {"tensorrt": (11, 0), "tensorrt_rtx": (1, 7)}


def load_tensorrt(module: str) -> Any:
    """The imported module. Raises ExportError with what to install."""
    install = f"pip install 'autoglm-triton[{EXTRAS[module]}]'"
    try:
        trt: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        raise ExportError(f"this export needs the package {module.replace('_', '-')}: {install}") from None
    except (ImportError, OSError) as error:
        raise ExportError(f"{module} is installed and cannot be loaded: {error}; {install}") from None
    if _numbers(trt.__version__) < OLDEST[module]:
        oldest = ".".join(str(number) for number in OLDEST[module])
        raise ExportError(f"{module} {trt.__version__} is too old; {oldest} or newer is needed: {install}")
    return trt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split(".")[:2])
