"""A chat template in a process of its own: what it costs there, in time and memory, has a limit.

The process is started with the first rendering, or by `start`, and again after one that ended. It ends with this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArtifactError, EngineError, InvalidRequest
from .template_worker import LENGTH_BYTES, pack_frame, unpack_frame

_WORKER = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from autoglm_engine.template_worker import main
main()
"""
_CHUNK = 1 << 20
_NEEDS_MEMORY = "needs more memory than it may have"


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Of one rendering. Long conversations get more: so much for each of their bytes."""

    seconds: float = 1.0  # of computing
    seconds_a_byte: float = 1e-6
    memory_bytes: int = 256 << 20
    memory_a_byte: int = 24
    wall_seconds: float = 30.0  # for a process that does not even get to compute
    compile_seconds: float = 10.0  # of computing, at load


class TemplateProcess:
    """Thread-safe: one rendering at a time. `special_tokens`: what the template may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], limits: TemplateLimits | None = None) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self.limits = limits or TemplateLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def start(self) -> None:
        """Compile the template. Raises ArtifactError where it cannot be, or not within the limits."""
        with self._lock:
            self._start()

    def render(self, names: Mapping[str, Any], most_characters: int) -> str:
        """Raises InvalidRequest where the template refuses what it is given, or goes beyond a limit on it."""
        request = pack_frame({"names": {**names, **self._special_tokens}, "most_characters": most_characters})
        with self._lock:
            was_running = self._process is not None
            self._start()
            answer = self._ask(request)
            if answer is None and was_running and self._died_idle():
                self._start()
                answer = self._ask(request)
            if answer is None:
                raise self._end_of(InvalidRequest, "on these messages")
        return self._read(answer, most_characters)

    def close(self) -> None:
        with self._lock:
            self._let_go()

    # ---- under the lock

    def _start(self) -> None:
        if self._process is not None:
            return
        self._process = _launch()
        self._end = weakref.finalize(self, _end_process, self._process)
        answer = self._exchange(pack_frame({"source": self._source, "limits": dataclasses.asdict(self.limits)}))
        if answer is None:
            raise self._end_of(ArtifactError, "when it is compiled")
        if "text" not in answer:
            self._let_go()
            raise ArtifactError(f"the chat template cannot be read: {answer.get('refused', _NEEDS_MEMORY)}")

    def _ask(self, request: bytes) -> Any:
        answer = self._exchange(request)
        if answer is not None and "text" not in answer and "refused" not in answer:
            self._let_go()  # it ends after such an answer
        return answer

    def _exchange(self, frame: bytes) -> Any:
        """The answer; None where the process ended, or was ended because it took too long."""
        assert self._process is not None, "the process was not started"
        deadline = time.monotonic() + self.limits.wall_seconds
        try:
            _write(self._process, frame, deadline)
            length = int.from_bytes(_read_exactly(self._process, LENGTH_BYTES, deadline), "big")
            return unpack_frame(_read_exactly(self._process, length, deadline))
        except (OSError, EOFError, ValueError):
            return None

    def _died_idle(self) -> bool:
        """Somebody else ended it before it was asked: not by what was asked."""
        assert self._process is not None, "the process was not started"
        if self._returncode() in (None, -signal.SIGPROF, -signal.SIGSEGV):
            return False
        self._let_go()
        return True

    def _returncode(self) -> int | None:
        assert self._process is not None, "the process was not started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(1.0)
        return None

    def _end_of(self, kind: type[EngineError], when: str) -> EngineError:
        code = self._returncode()
        self._let_go()
        if code in (None, -signal.SIGPROF):
            return kind(f"the model's chat template computes for too long {when}; it was stopped")
        return kind(f"the process of the model's chat template ended {when} ({_ending(code)})")

    def _let_go(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _read(self, answer: Any, most_characters: int) -> str:
        match answer:
            case {"text": str(text)}:
                return text
            case {"refused": reason}:
                raise InvalidRequest(f"messages do not suit the model's chat template: {reason}")
            case {"long": True}:
                raise InvalidRequest(
                    f"the model's chat template makes more than {most_characters} characters of messages, which cannot fit"
                )
            case _:
                raise InvalidRequest(f"the model's chat template {_NEEDS_MEMORY} for these messages")


def _launch() -> subprocess.Popen[bytes]:
    """With this process's own packages. Raises ArtifactError where there is no interpreter to start."""
    python = sys.executable if sys.executable and Path(sys.executable).is_file() else shutil.which("python3")
    if python is None:
        raise ArtifactError(
            "chat templates are rendered by a Python process of their own, and there is no python3 on PATH"
        )
    here = str(Path(__file__).resolve().parent.parent)
    try:
        process = _start_child([python, "-ISc", _WORKER, json.dumps([here, *sys.path])])
    except OSError as error:
        raise ArtifactError(f"{python} cannot be started, which renders chat templates: {error.strerror}") from None
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

    threading.Thread(target=keep, name="template-keeper", daemon=True).start()
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


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code}"
