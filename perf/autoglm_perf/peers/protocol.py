"""What a peer's process reads and writes; imported inside the peer's own environment, so it needs the standard library only.

Input, one JSON object: `checkpoint` (a .gguf file), `folder` (for converted models), `prompts` (token ids), `max_tokens`,
`concurrency`, `threads`. Output, the last line: a list of `[started, first token, finished, tokens]`, seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Job:
    checkpoint: Path
    folder: Path
    prompts: list[list[int]]
    max_tokens: int
    concurrency: int
    threads: int


Timing = tuple[float, float, float, int]


def serve(prepare: Callable[[Job], Path], measure: Callable[[Path, Job], list[Timing]]) -> None:
    raw = json.load(sys.stdin)
    job = Job(**{**raw, "checkpoint": Path(raw["checkpoint"]), "folder": Path(raw["folder"])})
    job.folder.mkdir(parents=True, exist_ok=True)
    timings = measure(prepare(job), job)
    print(json.dumps(timings))
