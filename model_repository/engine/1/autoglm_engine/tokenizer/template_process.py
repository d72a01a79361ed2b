"""A chat template in a process of its own: what it costs there, in time and memory, has a limit.

The process is started with the first rendering, or by `start`, and again after one that ended. It ends with this one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_engine.errors import ArtifactError, EngineError, InvalidRequest
from autoglm_engine.system.worker_frames import pack_frame, unpack_frame
from autoglm_engine.system.worker_process import WorkerProcess, ending, ran_out_of_time

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
    trial_seconds: float = 60.0  # of all renderings that show what the template does, at load


class TemplateProcess:
    """Thread-safe: one rendering at a time. `special_tokens`: what the template may name, too."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], limits: TemplateLimits | None = None) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self.limits = limits or TemplateLimits()
        self._lock = threading.Lock()
        self._process = WorkerProcess("tokenizer.template_worker", "chat templates are rendered")

    def another(self) -> TemplateProcess:
        """For the same template; not started."""
        return TemplateProcess(self._source, self._special_tokens, self.limits)

    def start(self) -> None:
        """Compile the template. Raises ArtifactError where it cannot be, or not within the limits."""
        with self._lock:
            self._start()

    def render(self, names: Mapping[str, Any], max_characters: int) -> str:
        """Raises InvalidRequest where the template refuses what it is given, or goes beyond a limit on it."""
        request = pack_frame({"names": {**self._special_tokens, **names}, "max_characters": max_characters})
        with self._lock:
            answer = self._process.ask_again_if_killed(self._start, lambda: self._ask(request))
            if answer is None:
                raise self._end_of(InvalidRequest, "on these messages")
        return self._read(answer, max_characters)

    def close(self) -> None:
        with self._lock:
            self._process.let_go()

    def kill(self) -> None:
        """Ends what is being rendered, from any thread."""
        self._process.kill()

    # ---- under the lock

    def _start(self) -> None:
        if self._process.is_running:
            return
        self._process.start()
        answer = self._exchange(pack_frame({"source": self._source, "limits": dataclasses.asdict(self.limits)}))
        if answer is None:
            raise self._end_of(ArtifactError, "when it is compiled")
        if "text" not in answer:
            self._process.let_go()
            raise ArtifactError(f"the chat template cannot be read: {answer.get('refused', _NEEDS_MEMORY)}")

    def _ask(self, request: bytes) -> Any:
        answer = self._exchange(request)
        if answer is not None and "text" not in answer and "refused" not in answer:
            self._process.let_go()  # it ends after such an answer
        return answer

    def _exchange(self, frame: bytes) -> Any:
        """The answer; None where the process ended, or took too long."""
        content = self._process.ask(frame, self.limits.wall_seconds)
        try:
            return None if content is None else unpack_frame(content)
        except ValueError:
            return None

    def _end_of(self, kind: type[EngineError], when: str) -> EngineError:
        code = self._process.returncode()
        self._process.let_go()
        if ran_out_of_time(code):
            return kind(f"the model's chat template computes for too long {when}; it was stopped")
        return kind(f"the process of the model's chat template ended {when} ({ending(code)})")

    def _read(self, answer: Any, max_characters: int) -> str:
        match answer:
            case {"text": str(text)}:
                return text
            case {"refused": reason}:
                raise InvalidRequest(f"messages do not suit the model's chat template: {reason}")
            case {"long": True}:
                raise InvalidRequest(
                    f"the model's chat template makes more than {max_characters} characters of messages, "
                    "which cannot fit"
                )
            case _:
                raise InvalidRequest(f"the model's chat template {_NEEDS_MEMORY} for these messages")
