"""Which TensorRT builds or runs a plan: the one place that imports it. Both modules have the same Python API."""

from __future__ import annotations

import importlib
import logging
from collections import deque
from typing import Any

from autoglm_engine.errors import ArtifactError

MODULES = ("tensorrt", "tensorrt_rtx")
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_NUM_ERRORS = 8  # that a log keeps

_log = logging.getLogger(__name__)


def load_module(module: str, version: str) -> Any:
    """The imported module, of the very version that built the plan. Raises ArtifactError with one sentence."""
    if module not in MODULES:
        raise ArtifactError(f"the artifact was built with {module!r}; this engine knows {', '.join(MODULES)}")
    try:
        trt = import_module(module)
    except ModuleNotFoundError:
        raise ArtifactError(
            f"the artifact needs the package {package_of(module)} {version}, which is not installed"
        ) from None
    if trt.__version__ != version:
        raise ArtifactError(
            f"the artifact was built with {_NAMES[module]} {version}, this machine has {trt.__version__}; "
            "export it again"
        )
    return trt


def import_module(module: str) -> Any:
    """One of MODULES. Raises ModuleNotFoundError where it is not installed, ArtifactError where it cannot be loaded."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise ArtifactError(f"the package {package_of(module)} is installed and cannot be loaded: {error}") from None


def package_of(module: str) -> str:
    """Its name where packages are installed from."""
    return module.replace("_", "-")


def new_log(trt: Any) -> Any:
    """A `trt.ILogger` that passes on what matters and remembers the last errors in `errors`. TensorRT may call it from
    any thread, and it must outlive whatever was made with it."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_NUM_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
                _log.error("TensorRT: %s", message)
            elif severity <= trt.ILogger.WARNING:
                _log.warning("TensorRT: %s", message)

    return Log()


def said(log: Any) -> str:
    """What TensorRT gave as the reason of a failure, on one line; it is told once."""
    errors = [log.errors.popleft() for _ in range(len(log.errors))]
    return " ".join(" ".join(errors).split())[:500] or "it gave no reason"
