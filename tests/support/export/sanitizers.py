"""Libraries built with AddressSanitizer and UndefinedBehaviorSanitizer, and processes that can load them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_export import compiler

SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]  # the compiler's options


def run_sanitized(source: str, *arguments: str) -> str:
    """What a Python process says that runs `source`. It fails the test that the process fails."""
    environment = {**os.environ, "LD_PRELOAD": ":".join(_sanitizers()), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _sanitizers() -> list[str]:
    """The libraries that must be loaded before all others."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*compiler.find_compiler(), f"-print-file-name={name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if not Path(said).is_absolute():
            pytest.skip(f"the compiler has no {name}")
        found.append(said)
    return found
