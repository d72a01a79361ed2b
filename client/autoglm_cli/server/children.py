"""Starts processes that do not outlive this one, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from autoglm_client.exceptions import LocalServerError

# 1 is PR_SET_PDEATHSIG, 9 is SIGKILL: it reaches a process that is stopped, too, and leaves nothing to wait for.
_GUARD = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """`options` are Popen's. Raises OSError as that does; a program that is not there ends with exit code 1.

    The kernel sends the signal when the *thread* that started a process ends. So a thread starts it that lives as long.
    """
    guarded = [sys.executable, "-ISc", _GUARD, str(os.getpid()), *command]
    started: Future[subprocess.Popen[bytes]] = Future()

    def keep() -> None:
        try:
            process = subprocess.Popen(guarded, **options)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()

    threading.Thread(target=keep, name="child-keeper", daemon=True).start()
    return started.result()


def start_logged(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """With its output behind what is in `log`. Raises LocalServerError."""
    try:
        with open(log, "ab", opener=_owners_alone) as output:
            return start_child(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
    except OSError as error:
        raise LocalServerError(f"tritonserver cannot be started with the log {log}: {error.strerror}") from None


def _owners_alone(path: str, flags: int) -> int:
    """A new log is nobody else's to read: warnings may quote what was asked. The rights of one that is there stay."""
    return os.open(path, flags, 0o600)
