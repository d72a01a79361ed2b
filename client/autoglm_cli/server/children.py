"""Starts processes that do not outlive this one, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

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
