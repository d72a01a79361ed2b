"""A Python process of our own that answers one frame after the other: what its work costs there can be ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from autoglm_engine.errors import ArtifactError, ShuttingDown

from .worker_frames import LENGTH_BYTES

_Answer = TypeVar("_Answer")
_WORKER = """
import json, os, sys
os.nice({niceness})
sys.path[:] = json.loads(sys.argv[1])
from autoglm_engine.{module} import main
main()
"""
_NICENESS = 5  # a long text waits for the steps of others, and not they for it
_CHUNK = 1 << 20
_OWN_ENDS = (None, -signal.SIGPROF, -signal.SIGSEGV)  # what its work does to it


class WorkerProcess:
    """Runs `main` of `autoglm_engine.<module>`. `does`: what an error says of it, such as "chat templates are
    rendered". Not thread-safe, but for `kill`. It ends with this process, and with this object."""

    def __init__(self, module: str, does: str) -> None:
        self._module = module
        self._does = does
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._is_over = False

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Raises ArtifactError where there is no interpreter to start, ShuttingDown after `kill`."""
        if not self._is_over:
            self._process = _launch(_WORKER.format(module=self._module, niceness=_NICENESS), self._does)
            self._end = weakref.finalize(self, _end_process, self._process)
        if self._is_over:
            self.let_go()
            raise ShuttingDown("the server is shutting down")

    def ask(self, frame: bytes, wall_seconds: float) -> bytes | None:
        """The answer's content; None where the process ended, or did not answer in time."""
        assert self._process is not None, "the process was not started"
        deadline = time.monotonic() + wall_seconds
        try:
            _write(self._process, frame, deadline)
            length = int.from_bytes(_read_exactly(self._process, LENGTH_BYTES, deadline), "big")
            return _read_exactly(self._process, length, deadline)
        except (OSError, EOFError):
            return None

    def ask_again_if_killed(self, start: Callable[[], None], ask: Callable[[], _Answer | None]) -> _Answer | None:
        """`start` it where it does not run, and `ask` it: once more where it ran before, and it was somebody else who
        ended it, and not what was asked."""
        was_running = self.is_running
        start()
        answer = ask()
        if answer is None and was_running and self._ended_by_others():
            self.let_go()
            start()
            answer = ask()
        return answer

    def _ended_by_others(self) -> bool:
        return not self._is_over and self.returncode() not in _OWN_ENDS

    def returncode(self) -> int | None:
        """None: it goes on, or stands still."""
        assert self._process is not None, "the process was not started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(1.0)
        return None

    def kill(self) -> None:
        """For good, from any thread. Who waits for its answer gets none."""
        self._is_over = True
        if (process := self._process) is not None:
            process.kill()

    def let_go(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


def ran_out_of_time(code: int | None) -> bool:
    return code in (None, -signal.SIGPROF)


def ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code}"


def _launch(program: str, does: str) -> subprocess.Popen[bytes]:
    """With this process's own packages."""
    python = sys.executable if sys.executable and Path(sys.executable).is_file() else shutil.which("python3")
    if python is None:
        raise ArtifactError(f"{does} by a Python process of its own, and there is no python3 on PATH")
    here = str(Path(__file__).resolve().parents[2])
    try:
        process = _start_child([python, "-ISc", program, json.dumps([here, *sys.path])])
    except OSError as error:
        raise ArtifactError(f"{python} cannot be started, by which {does}: {error.strerror}") from None
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


def _start_child(command: list[str]) -> subprocess.Popen[bytes]:
    """Its parent is a thread that lives as long: the kernel ends the worker with the thread that started it."""
    started: Future[subprocess.Popen[bytes]] = Future()

    def keep() -> None:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()

    threading.Thread(target=keep, name="worker-keeper", daemon=True).start()
    return started.result()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()


def _write(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
    assert process.stdin is not None
    left = memoryview(content)
    while left:
        _wait(process.stdin.fileno(), select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(process.stdin.fileno(), left[:_CHUNK]) :]


def _read_exactly(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
    assert process.stdout is not None
    parts: list[bytes] = []
    while count:
        _wait(process.stdout.fileno(), select.POLLIN, deadline)
        try:
            part = os.read(process.stdout.fileno(), min(count, _CHUNK))
        except BlockingIOError:
            continue
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Raises TimeoutError, an OSError."""
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        raise TimeoutError
