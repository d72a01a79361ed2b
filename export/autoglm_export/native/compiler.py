"""Builds the native decoder with the C++ compiler of this machine, for the instructions of this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from autoglm_export.errors import ExportError

SOURCE = Path(__file__).with_name("decoder.cpp")
# -ffp-contract=off: rounding must not depend on what the compiler inlines where, or answers would depend on the batch
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi",
         "-fvisibility=hidden")

_V3_FEATURES = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm")
_V4_FEATURES = (*_V3_FEATURES, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True, slots=True)
class Target:
    """A set of instructions: the compiler's options for it, and the flags that /proc/cpuinfo shows where it is present."""

    name: str
    options: tuple[str, ...]
    cpu_features: tuple[str, ...]


TARGETS = (  # best first
    Target(
        "avx512-bf16",
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
        (*_V4_FEATURES, "avx512_vnni", "avx512_bf16"),
    ),
    Target("avx512-vnni", ("-march=x86-64-v4", "-mavx512vnni"), (*_V4_FEATURES, "avx512_vnni")),
    Target("avx2", ("-march=x86-64-v3",), _V3_FEATURES),
    Target("x86-64", ("-march=x86-64",), ()),
)


def best_target(cpu_features: Collection[str]) -> Target:
    """The fastest target that a CPU with these features runs."""
    return next(target for target in TARGETS if set(target.cpu_features) <= set(cpu_features))


def build_decoder(library: Path, target: Target, *, extra_options: Collection[str] = ()) -> None:
    """Compile the decoder into the shared library `library`. Raises ExportError without a compiler, or when it fails."""
    if not _supported_platform():
        raise ExportError(f"the native runtime needs Linux on x86-64, this is {platform.system()} {platform.machine()}")
    compiler = find_compiler()
    options = [_zig_spelling(option) for option in target.options] if "ziglang" in compiler else target.options
    command = [*compiler, *FLAGS, *options, *extra_options, str(SOURCE), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise ExportError(f"{command[0]} could not build the native decoder: {reason}")


def can_build_here() -> bool:
    """Whether this is a platform of the native decoder and has a compiler."""
    try:
        return _supported_platform() and bool(find_compiler())
    except ExportError:
        return False


def _supported_platform() -> bool:
    return platform.machine() == "x86_64" and platform.system() == "Linux"


def find_compiler() -> list[str]:
    """The command of a C++17 compiler: $CXX, g++, clang++, or the ziglang package."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise ExportError("the native runtime needs a C++ compiler: install g++ or clang++, or `pip install ziglang`")


def _zig_spelling(option: str) -> str:
    """Zig calls x86-64-v4 x86_64_v4."""
    return "-march=" + option.removeprefix("-march=").replace("-", "_") if option.startswith("-march=") else option
