"""What an experiment may use: the artifact, how much to measure, prompts that nobody asked before, and servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autoglm_cli.server.local_server import LocalServer
from tokenizers import Tokenizer

from autoglm_perf.load.workload import Workload, reference_workload


@dataclass(frozen=True, slots=True)
class Context:
    """`quick`: see that it works, in seconds; figures of such a run are not for publishing. `say` shows progress."""

    repository: Path
    artifact: Path
    tokenizer: Tokenizer
    quick: bool
    repeats: int
    say: Callable[[str], None]
    soak_minutes: float = 20.0
    seeds: Iterator[int] = field(default_factory=itertools.count)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def fresh_workload(self, num_prompts: int = 64) -> Workload:
        """W with prompts of its own: those that were asked before would start from their slots."""
        return reference_workload(self.tokenizer, num_prompts=num_prompts, seed=next(self.seeds))

    def repeated(self, label: str) -> Iterator[int]:
        for number in range(self.repeats):
            self.say(f"{label}, {number + 1} of {self.repeats}")
            yield number

    @contextmanager
    def server(self, env: Mapping[str, str] | None = None) -> Iterator[LocalServer]:
        """A real server of its own; `env`: AUTOGLM_MAX_QUEUE and the like."""
        self.say("starting tritonserver")
        with LocalServer(self.repository, artifact=self.artifact, env=env) as server:
            yield server
