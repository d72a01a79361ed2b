"""Finds the tritonserver that the nvidia-pytriton wheel carries, and makes its Python backend usable.

The package itself is never imported: it is only looked up.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoglm_client.exceptions import LocalServerError

DISTRIBUTION = "nvidia-pytriton==0.7.0"


@dataclass(frozen=True, slots=True)
class TritonInstall:
    """`libraries`: the wheel's shared libraries. `python_library`: the folder of this interpreter's libpython, None
    when the system's loader finds one by itself."""

    root: Path
    libraries: Path
    python_library: Path | None

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    def assemble_backends(self, folder: Path) -> Path:
        """Make a backend directory in `folder`: the Python backend of the wheel with this interpreter's stub beside it,
        where Triton looks for it. Links only; the wheel stays as it is."""
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for source in (self.root / "backends" / "python").iterdir():
            if source.is_file():
                (backend / source.name).symlink_to(source)
        stub = self._stub()
        (backend / stub.name).symlink_to(stub)
        return backend.parent

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with this interpreter's `python3` first on PATH (the stub takes its packages from there) and the
        shared libraries findable."""
        libraries = [self.libraries, self.python_library] if self.python_library else [self.libraries]
        return {
            **base,
            "PATH": _joined([Path(sys.executable).parent], base.get("PATH", os.defpath)),
            "LD_LIBRARY_PATH": _joined(libraries, base.get("LD_LIBRARY_PATH", "")),
        }

    def _stub(self) -> Path:
        stubs = self.root / "python_backend_stubs"
        stub = stubs / _python_version() / "triton_python_backend_stub"
        if not stub.exists():
            versions = ", ".join(sorted((path.name for path in stubs.iterdir()), key=lambda name: int(name[2:])))
            raise LocalServerError(f"{DISTRIBUTION} has no stub for Python {_python_version()}; it has {versions}")
        return stub


def find_triton() -> TritonInstall:
    """Raises LocalServerError that says what to install."""
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(location) / "tritonserver"
        if (root / "bin" / "tritonserver").exists():
            libraries = Path(location).parent / "nvidia_pytriton.libs"
            return TritonInstall(root, libraries, find_python_library())
    raise LocalServerError(
        f"tritonserver is not installed in {sys.prefix}: pip install 'autoglm-triton[serve]' (it brings {DISTRIBUTION})"
    )


def find_python_library() -> Path | None:
    """The folder of libpython3.X.so.1.0: the interpreter's own, else None when the system has it."""
    name = f"libpython{_python_version()}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")):
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    if ctypes.util.find_library(f"python{_python_version()}"):
        return None
    raise LocalServerError(
        f"Triton's Python backend needs {name}, which is not on this machine: "
        f"apt-get install libpython{_python_version()}"
    )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _joined(first: list[Path], rest: str) -> str:
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])
