"""Arguments of tritonserver that not every version takes, or that our clients want."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_HELP_SECONDS = 30.0
# What servers take of clients older than this one, which ping each 30 s, and of others; Triton's own default is 300 s.
PING_ARGUMENTS = ("--grpc-http2-min-recv-ping-interval-without-data=10000",)
# Off by default since 26.04; older versions, where it was always on, refuse the flag. The API itself is closed by a
# key.
_CLIENT_MEMORY = "--allow-client-shm"


def client_memory_arguments(binary: Path, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What lets clients pass inputs through shared memory, where this tritonserver has to be told."""
    return (f"{_CLIENT_MEMORY}=true",) if _CLIENT_MEMORY in _help(binary, environ) else ()


def _help(binary: Path, environ: Mapping[str, str]) -> str:
    try:
        asked = [str(binary), "--help"]
        found = subprocess.run(asked, env=dict(environ), capture_output=True, timeout=_HELP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):  # the start itself will say what is wrong
        return ""
    return (found.stdout + found.stderr).decode(errors="replace")
