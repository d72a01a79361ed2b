"""What a peer's process reads and writes; imported inside the peer's own environment, so it needs no package.

Input, one JSON object: the fields of `Job`. Output, the last line, one JSON object: for `measure` the `timings`, a list
of `[started, first token, finished, tokens]` in seconds, `peak_mb`, the process's greatest resident memory, and `note`,
which settings it took; for `logits` the `files`, one `.npy` a text: float32, `[len(text), vocab_size]`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autoglm_perf.system.memory import peak_of

Timing = tuple[float, float, float, int]


@dataclass(slots=True)
class Job:
    """`action`: prepare, measure or logits. `checkpoint`: a .gguf file as published; `float16`: the same weights in 16
    bits, for peers that quantise on their own. `folder`: for converted models. `texts`: token ids whose logits are
    asked for."""

    action: str
    variant: str
    checkpoint: Path
    float16: Path
    folder: Path
    prompts: list[list[int]]
    texts: list[list[int]]
    max_tokens: int
    concurrency: int
    threads: int

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Job:
        return cls(**{**raw, **{name: Path(raw[name]) for name in ("checkpoint", "float16", "folder")}})


class Peer(Protocol):
    """`prepare` makes the model file once. `measure` says, besides the timings, which settings it took."""

    def prepare(self, job: Job) -> Path: ...

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]: ...

    def logits(self, path: Path, job: Job) -> list[Any]:
        """For each text an array `[len(text), vocab_size]`: the logits after each token."""


def serve(peer: Peer) -> None:
    """Answers the job on stdin. Who starts a peer by hand is told that the suite does."""
    if sys.stdin.isatty():
        raise SystemExit("a job, in JSON, is expected on stdin: `python -m autoglm_perf --only peers` sends it")
    job = Job.from_json(json.load(sys.stdin))
    job.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(_answer(peer, job)))


def _answer(peer: Peer, job: Job) -> dict[str, Any]:
    path = peer.prepare(job)
    if job.action == "prepare":
        return {}
    if job.action == "logits":
        return {"files": _saved(peer.logits(path, job), job.folder)}
    timings, note = peer.measure(path, job)
    return {"timings": timings, "peak_mb": peak_of(["self"]), "note": note}


def _saved(arrays: list[Any], folder: Path) -> list[str]:
    import numpy as np

    files = [folder / f"logits-{number}.npy" for number in range(len(arrays))]
    for file, array in zip(files, arrays, strict=True):
        np.save(file, np.asarray(array, np.float32))
    return [str(file) for file in files]
