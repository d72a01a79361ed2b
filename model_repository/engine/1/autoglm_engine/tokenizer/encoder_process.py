"""A tokenizer in a process of its own, which can be ended: what runs in the library of this one cannot.

The process is started with the first text, and again after one that ended. It reads the file that was there when this
was made, also where another has taken its place.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoglm_engine.core import TokenIds
from autoglm_engine.errors import ArtifactError, EngineError, InvalidRequest
from autoglm_engine.system.worker_frames import frame_of, pack_frame
from autoglm_engine.system.worker_process import WorkerProcess, ending, ran_out_of_time


class EncodingTooSlow(InvalidRequest):
    """A text that this tokenizer does not encode in its time."""


@dataclass(frozen=True, slots=True)
class EncoderLimits:
    """Of one text. Long ones get more: so much for each of their bytes."""

    seconds: float = 2.0  # of computing
    seconds_a_byte: float = 1e-5  # some ten times what BPE takes
    wall_seconds: float = 30.0  # for a process that does not even get to compute
    wall_seconds_a_byte: float = 1e-4
    load_seconds: float = 60.0  # of computing, to read the tokenizer


class EncoderProcess:
    """Thread-safe: one text at a time. `path`: a tokenizer.json."""

    def __init__(self, path: Path, limits: EncoderLimits | None = None) -> None:
        self._path = path
        self.limits = limits or EncoderLimits()
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close_file = weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()
        self._process = WorkerProcess("tokenizer.encoder_worker", "long texts are encoded")

    def another(self) -> EncoderProcess:
        """For the same file; not started."""
        return EncoderProcess(Path(f"/proc/self/fd/{self._file}"), self.limits)

    def encode(self, text: str, name: str, *, special_tokens: bool) -> TokenIds:
        """int32 [num_tokens]. Raises EncodingTooSlow, with `name` for the text; ArtifactError where the tokenizer
        cannot be read; EngineError where it fails on the text."""
        content = text.encode()
        frame = frame_of((b"\1" if special_tokens else b"\0") + content)
        wall_seconds = self.limits.wall_seconds + len(content) * self.limits.wall_seconds_a_byte
        with self._lock:
            answer = self._process.ask_again_if_killed(self._start, lambda: self._process.ask(frame, wall_seconds))
            if answer is None:
                raise self._end(f"{name} takes too long to encode with the model's tokenizer; it was stopped")
        if answer[:1] != b"\1":
            raise EngineError(f"the tokenizer failed on {name}: {answer[1:].decode()}")
        return np.frombuffer(answer[1:], dtype=np.int32)

    def close(self) -> None:
        with self._lock:
            self._process.let_go()

    def kill(self) -> None:
        """Ends what is being encoded, from any thread."""
        self._process.kill()

    # ---- under the lock

    def _start(self) -> None:
        if self._process.is_running:
            return
        self._process.start()
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        asked = pack_frame({"path": path, "limits": dataclasses.asdict(self.limits)})
        answer = self._process.ask(asked, self.limits.wall_seconds + self.limits.load_seconds)
        if answer is None:
            raise ArtifactError(str(self._end("the model's tokenizer takes too long to read; it was stopped")))
        if answer:
            self._process.let_go()
            raise ArtifactError(f"{self._path} cannot be read: {answer.decode()}")

    def _end(self, too_slow: str) -> EngineError:
        code = self._process.returncode()
        self._process.let_go()
        if ran_out_of_time(code):
            return EncodingTooSlow(too_slow)
        return EngineError(f"the process that encodes ended ({ending(code)})")
