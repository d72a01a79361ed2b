"""What a step costs beside the model: 256 slots over a runner that computes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from autoglm_engine.core import Logits, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Deferred, Limits
from autoglm_engine.tokenizer.incremental import TokenText

from autoglm_perf.in_process.in_process import drive
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric

_STEP = Metric("step", "ms", higher_is_better=False)
_ROW = Metric("a token", "microseconds", higher_is_better=False)
_VOCAB, _LENGTH = 512, 512
DESCRIPTION = Description(
    "scheduler-overhead",
    "Scheduler overhead",
    "Planning, sampling and events of 256 running requests cost milliseconds a step, and as much a token as with 16.",
    (_ROW, _STEP),
)


@dataclass(slots=True)
class NothingRunner:
    """Answers the same logits at once, and counts its steps."""

    limits: Limits
    logits: Logits  # [num_slots, vocab_size]
    num_steps: int = 0

    def issue(self, batch: StepBatch) -> Deferred:
        self.num_steps += 1
        return Deferred(self._forward, batch)

    def _forward(self, batch: StepBatch) -> Logits:
        return self.logits[: sum(span.wants_logits for span in batch.spans)]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        pass

    def close(self) -> None:
        pass


def run(context: Context) -> Found:
    tokens = context.size(256, 32)
    arms = tuple(_measure(context, slots, tokens) for slots in (16, 256))
    settings = {"runner": f"computes nothing; vocabulary {_VOCAB}, greedy, 16 prompt tokens"}
    return Found(arms, settings, f"{tokens} tokens of each slot")


def _measure(context: Context, num_slots: int, tokens: int) -> Arm:
    label, steps, rows = f"{num_slots} slots", [], []
    for _ in context.repeated(label):
        draw = np.random.default_rng(next(context.seeds))
        logits = draw.random((num_slots, _VOCAB), np.float32)
        runner = NothingRunner(Limits(num_slots, _LENGTH, 128, _VOCAB), logits)
        engine = Engine(runner, TokenText(context.tokenizer), ())
        prompts = [draw.integers(0, _VOCAB, 16).astype(np.int32) for _ in range(num_slots)]
        started = time.perf_counter()
        drive(engine, prompts, tokens, num_slots)
        seconds = time.perf_counter() - started
        steps.append(1e3 * seconds / runner.num_steps)
        rows.append(1e6 * seconds / (num_slots * tokens))
    return Arm(label, {_STEP.name: tuple(steps), _ROW.name: tuple(rows)})
