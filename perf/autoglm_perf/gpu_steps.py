"""Our own steps: builds an artifact of a shape, and times decode and prefill through its runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from autoglm_engine.core import Candidates, Logits, Span, StepBatch
from autoglm_engine.load import load_runner
from autoglm_engine.manifest import Manifest
from autoglm_engine.runner import Limits
from autoglm_export.artifact import Options, describe, lower
from autoglm_export.lowering import Progress, no_progress
from autoglm_export.spec import ModelSpec
from autoglm_export.weights import Array

from .gpu_samples import time_each


class PendingStep(Protocol):
    def result(self) -> Logits | Candidates: ...


class StepRunner(Protocol):
    """What is used here of `autoglm_engine.runner.Runner`."""

    @property
    def limits(self) -> Limits: ...

    def issue(self, batch: StepBatch) -> PendingStep: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineLimits:
    num_slots: int
    max_length: int
    prefill_chunk: int


def build_artifact(
    spec: ModelSpec,
    weights: Mapping[str, Array],
    folder: Path,
    *,
    runtime: str,
    precision: str,
    limits: EngineLimits,
    options: Mapping[str, Any],
    progress: Progress = no_progress,
) -> Manifest:
    """Lower `weights` into `folder` and write the manifest that the runner needs; there is no tokenizer.

    `options` are those of the runtime's own lowering, beside the ones that all have; one that it does not take raises
    TypeError.
    """
    plan = Options(runtime, precision, **dataclasses.asdict(limits))
    details = lower(spec, weights, folder, plan, progress=progress, **options)
    return describe(folder, spec, plan, details, model_name="random")


@contextmanager
def loaded(folder: Path, **settings: Any) -> Iterator[StepRunner]:
    """The runner of an artifact; `settings` are those of `load_runner`. One that it does not know raises TypeError: a
    measurement on another device than the one asked for would be worse than none."""
    runner = cast(StepRunner, cast(Callable[..., object], load_runner)(folder, Manifest.load(folder), **settings))
    try:
        yield runner
    finally:
        runner.close()


def time_decode(runner: StepRunner, batch: int, past: int, *, warm_up: int, samples: int) -> list[float]:
    """Seconds of each decode step of slots 0 ... batch - 1, the first one after `past` tokens, and so on."""
    token = np.array([7], np.int32)

    def step(index: int) -> None:
        spans = tuple(Span(slot, past + index, token, wants_logits=True) for slot in range(batch))
        runner.issue(StepBatch(spans)).result()

    return time_each(step, warm_up, samples)


def time_prefill(runner: StepRunner, tokens: int, *, warm_up: int, samples: int) -> list[float]:
    """Seconds of each prefill of `tokens` tokens into slot 0, in chunks of the runner's size."""
    ids = some_ids(runner, tokens)
    return time_each(lambda _: fill(runner, 0, ids), warm_up, samples)


def fill(runner: StepRunner, slot: int, ids: Sequence[int]) -> None:
    chunk = runner.limits.prefill_chunk
    for start in range(0, len(ids), chunk):
        part = np.asarray(ids[start : start + chunk], np.int32)
        is_last = start + chunk >= len(ids)
        runner.issue(StepBatch((Span(slot, start, part, wants_logits=is_last),))).result()


def some_ids(runner: StepRunner, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(1).integers(0, runner.limits.vocab_size, count).tolist()
    return ids
