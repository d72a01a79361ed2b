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
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.registry import load_runner
from autoglm_export.artifact import Options, describe, lower
from autoglm_export.checkpoint.weights import Array
from autoglm_export.model.spec import ModelSpec
from autoglm_export.runtimes import Progress, no_progress

from .samples import time_each

TOKEN = 7  # that is decoded


class PendingStep(Protocol):
    def result(self) -> Logits | Candidates: ...


class StepRunner(Protocol):
    """What is used here of `autoglm_engine.runners.base.Runner`."""

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


def time_decode(runner: StepRunner, batch: int, past: int, *, warm_up: int, samples: int) -> tuple[list[float], Logits]:
    """Seconds of each decode step of slots 0 ... batch - 1, the first one after `past` tokens, and so on; and the last
    step's logits `[batch, vocab_size]`. Every step feeds TOKEN to every slot."""
    last: list[Candidates | Logits] = []

    def step(index: int) -> None:
        last[:] = [_decoded(runner, batch, past + index, TOKEN)]

    seconds = time_each(step, warm_up, samples)
    return seconds, _rows(last[0], batch)


def time_prefill(runner: StepRunner, tokens: int, *, warm_up: int, samples: int) -> tuple[list[float], Logits]:
    """Seconds of each prefill of `tokens` tokens into slot 0, in chunks of the runner's size; and the last one's
    logits."""
    ids = some_ids(runner, tokens)
    last: list[Candidates | Logits] = []

    def prefill(_: int) -> None:
        last[:] = [_filled(runner, 0, ids)]

    seconds = time_each(prefill, warm_up, samples)
    return seconds, _row(last[0])


def fill(runner: StepRunner, slot: int, ids: Sequence[int]) -> Logits:
    """Prefill in chunks; the logits `[vocab_size]` after the last token."""
    return _row(_filled(runner, slot, ids))


def decode(runner: StepRunner, batch: int, start: int, token: int) -> Logits:
    """The logits `[batch, vocab_size]` of one step of slots 0 ... batch - 1."""
    return _rows(_decoded(runner, batch, start, token), batch)


def some_ids(runner: StepRunner, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(1).integers(0, runner.limits.vocab_size, count).tolist()
    return ids


def _decoded(runner: StepRunner, batch: int, start: int, token: int) -> Candidates | Logits:
    ids = np.array([token], np.int32)
    spans = tuple(Span(slot, start, ids, wants_logits=True) for slot in range(batch))
    return runner.issue(StepBatch(spans)).result()


def _filled(runner: StepRunner, slot: int, ids: Sequence[int]) -> Candidates | Logits:
    chunk = runner.limits.prefill_chunk
    for start in range(0, len(ids), chunk):
        part = np.asarray(ids[start : start + chunk], np.int32)
        is_last = start + chunk >= len(ids)
        found = runner.issue(StepBatch((Span(slot, start, part, wants_logits=is_last),))).result()
    return found


def _row(found: Candidates | Logits) -> Logits:
    return np.asarray(_rows(found, 1)[0])


def _rows(found: Candidates | Logits, count: int) -> Logits:
    """Whole rows, before another step overwrites them."""
    if isinstance(found, Candidates):
        return np.array([found.full_row(row) for row in range(count)], np.float32)
    return np.array(found)
