"""Takes secrets out of a child's command line, which every user of the machine can read (`ps`), where a program takes
them in no other way. Linux only: the kernel shows what lies in the process's own memory at that moment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_ARG_START, _ARG_END = 45, 46  # fields 48 and 49 of /proc/PID/stat, counted behind the name; see proc_pid_stat(5)


def hide_arguments(pid: int, secrets: Iterable[str], proc: Path = Path("/proc")) -> bool:
    """Overwrite each secret with stars, once the process has read its arguments. Whether that could be done: the system
    may forbid it (a hardened kernel, a container), and then they stay visible."""
    try:
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with (proc / str(pid) / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            hidden = _starred(arguments, secrets)
            if hidden != arguments:
                memory.seek(start)
                memory.write(hidden)
    except (OSError, ValueError, IndexError, OverflowError):
        return False
    return True


def _starred(arguments: bytes, secrets: Iterable[str]) -> bytes:
    for secret in secrets:
        arguments = arguments.replace(secret.encode(), b"*" * len(secret.encode()))
    return arguments
