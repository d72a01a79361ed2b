"""Builds C++ sources of this package into shared libraries, for a class of x86-64 CPUs.

A library is built once for its sources, its options and the compiler, and kept in the user's cache folder.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from autoglm_engine.runners.cpu import cpu_features
from autoglm_engine.runners.native.library import TARGET_VARIABLE

from .errors import ExportError, InvalidOption

DECODER_SOURCE = Path(__file__).parent / "native" / "csrc" / "decoder.cpp"
PIXELS_SOURCE = Path(__file__).parent / "native" / "images" / "pixels.cpp"
# -ffp-contract=off: rounding must not depend on what the compiler inlines where, or answers would depend on the batch
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno"),
    *("-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wno-psabi"),
)

_V3_FEATURES = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm")
_V4_FEATURES = (*_V3_FEATURES, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True, slots=True)
class Target:
    """A class of CPUs: the compiler's options for it, and the flags that /proc/cpuinfo shows where it runs."""

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
    Target("portable", ("-march=x86-64",), ()),
)


def runnable_targets(features: Collection[str] | None = None) -> list[Target]:
    """Those that a CPU with these features runs, the fastest first; None: this CPU."""
    present = set(cpu_features() if features is None else features)
    return [target for target in TARGETS if set(target.cpu_features) <= present]


def chosen_target() -> Target:
    """The fastest target that this CPU runs, or the one that the environment names. Raises InvalidOption."""
    runnable = runnable_targets()
    if not (wanted := os.environ.get(TARGET_VARIABLE)):
        return runnable[0]
    for target in runnable:
        if target.name == wanted:
            return target
    raise InvalidOption(
        f"{TARGET_VARIABLE} is {wanted!r}; this CPU runs {', '.join(target.name for target in runnable)}"
    )


def build(source: Path, target: Target, *, extra_options: Sequence[str] = ()) -> Path:
    """The shared library of `source` for `target`, built now or earlier. Raises ExportError without a compiler, or when
    it fails."""
    if not _supported_platform():
        raise ExportError(f"the native runtime needs Linux on x86-64, this is {platform.system()} {platform.machine()}")
    compiler = find_compiler()
    options = [_zig_spelling(option) for option in target.options] if "ziglang" in compiler else target.options
    command = [*compiler, *FLAGS, *options, *extra_options, str(source)]
    library = _cache_folder() / f"{source.stem}-{target.name}-{_digest(source, command)}.so"
    if not library.exists():
        with _alone(library):
            if not library.exists():  # who waited finds it
                _compile(command, library)
    return library


@contextmanager
def _alone(library: Path) -> Iterator[None]:
    """No other process of this user compiles `library` meanwhile."""
    import fcntl  # of Linux, as the decoder is

    with library.with_name(f".{library.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as folder:
        output = Path(folder) / library.name
        result = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["it said nothing"])[0]
            raise ExportError(f"{command[0]} could not build {Path(command[-1]).name}: {reason}")
        output.replace(library)


def _digest(source: Path, command: Sequence[str]) -> str:
    """Of everything that decides what the compiler writes."""
    said = [*command[:-1], _compiler_version(command), sources_digest(source)]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def sources_digest(source: Path) -> str:
    """Of `source` and the headers: those of its folder and of this one."""
    headers = sorted({*source.parent.glob("*.h"), *DECODER_SOURCE.parent.glob("*.h")})
    content = b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in (source, *headers))
    return hashlib.sha256(content).hexdigest()


def _compiler_version(command: Sequence[str]) -> str:
    compiler = command[: command.index(FLAGS[0])]
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise ExportError(f"{compiler[0]} cannot be run: {error.strerror}") from None


def _cache_folder() -> Path:
    """The user's own; what lies in it is loaded into the process, so nobody else may write there."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "autoglm-triton" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_own = folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK)
    except OSError:
        is_own = False
    return folder if is_own else _process_folder()


@lru_cache(maxsize=1)
def _process_folder() -> Path:
    """For a user without a cache folder: gone with the process."""
    folder = tempfile.mkdtemp(prefix="autoglm-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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
