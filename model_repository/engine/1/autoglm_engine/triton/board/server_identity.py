"""Which server a model's process belongs to, and which of its engines. A process id alone says little: it is used
again, and where shared memory is the host's (`--ipc=host`) the servers of two containers can both have the id 1."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from autoglm_engine.system.process_start import start_ticks
from autoglm_engine.triton.neighbours import DEFAULT_ENGINE


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    pid: int
    started: int  # in clock ticks since the machine's start
    namespace: int  # of process ids
    engine: int  # of the engine model's name: 64 bits of BLAKE2b

    @classmethod
    def of(cls, pid: int, engine: str = DEFAULT_ENGINE) -> ServerIdentity:
        """Of a server in this process's own namespace. Raises OSError where there is none."""
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return cls(pid, start_ticks(pid), namespace, _number_of(engine))

    @classmethod
    def of_parent(cls, engine: str = DEFAULT_ENGINE) -> ServerIdentity:
        """Of the tritonserver whose model this process is, and the engine that it works with."""
        return cls.of(os.getppid(), engine)


def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
