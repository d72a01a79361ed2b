"""How long the steps of a model would take here on each of several runtimes.

What runs is a reduced model of the same shape with weights at random, lowered and loaded as the whole model would be,
so it takes seconds, whatever the checkpoint's size. Nothing here knows what the times are for.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.runners.base import Runner, run_step
from autoglm_engine.runners.registry import load_runner

from autoglm_export.artifact import Options, describe, lower
from autoglm_export.model.spec import ModelSpec
from autoglm_export.runtimes import Progress

from .random_weights import RandomWeights
from .reduced_model import reduced

# A typical request of a server under load: that many sequences decode together.
PROMPT_TOKENS, ANSWER_TOKENS, NUM_SEQUENCES = 128, 64, 16

STAGE = "measure runtimes"
_NUM_ROUNDS = 3  # the runtimes take turns, so that what else the machine does hits them alike
_MAX_REPEATS, _ENOUGH_SECONDS = 5, 0.1  # of one kind of step in a round
_MAX_LENGTH = 1024  # of the slots: where a prompt and its answer lie in longer ones makes no difference
_NUM_DRAWN = 1 << 16  # random numbers a weight

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Workload:
    """What is timed: a prompt's tokens in one step, and a token of each of `num_sequences` behind such prompts."""

    num_prompt_tokens: int
    num_sequences: int

    @classmethod
    def within(cls, plans: Sequence[Options]) -> Workload:
        """As much of the typical request as fits all of them."""
        prompt = min(min(plan.prefill_chunk, plan.max_length - 1) for plan in plans)
        slots = min(plan.num_slots for plan in plans)
        return cls(min(PROMPT_TOKENS, prompt), min(NUM_SEQUENCES, slots))


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians for the whole model, in milliseconds."""

    prefill_ms: float
    decode_ms: float  # of all sequences of the workload
    decode_1_ms: float

    def request_ms(self, workload: Workload) -> float:
        """A typical request's share of the machine: its prompt, and its share of each step that computes its tokens."""
        prompt = self.prefill_ms * PROMPT_TOKENS / workload.num_prompt_tokens
        return prompt + ANSWER_TOKENS * self.decode_ms / workload.num_sequences


@dataclass(frozen=True, slots=True)
class Measured:
    workload: Workload
    num_layers: int  # of the reduced model
    num_threads: int
    timings: dict[str, Timing] = field(default_factory=dict)  # by runtime; none where less than two could be timed
    failures: dict[str, Exception] = field(default_factory=dict)  # why a runtime is not among them


def measure(
    plans: Sequence[Options], spec: ModelSpec, folder: Path, progress: Progress, *, clock: Clock = time.perf_counter
) -> Measured:
    """Time the steps of a model of `spec`, as `plans` would export it; `folder` is for files that are gone
    afterwards."""
    small, num_threads = reduced(spec), len(os.sched_getaffinity(0))
    measured = Measured(Workload.within(plans), small.num_layers, num_threads)
    with ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for plan in plans:
            with _noted(measured.failures, plan.runtime):
                runner = stack.enter_context(_built(plan, small, measured, folder, progress))
                benches[plan.runtime] = Bench(runner, measured.workload, clock)
        _take_turns(benches, measured.failures, progress)
        if len(benches) > 1:
            scale = spec.num_layers / small.num_layers
            measured.timings.update({name: bench.timing(scale) for name, bench in benches.items()})
    return measured


class Bench:
    """The steps of a workload, and the seconds they took."""

    def __init__(self, runner: Runner, workload: Workload, clock: Clock) -> None:
        length = workload.num_prompt_tokens
        ids = np.arange(1, length + 2, dtype=np.int32) % runner.limits.vocab_size
        spans = tuple(Span(slot, length, ids[-1:], True) for slot in range(workload.num_sequences))
        self._steps = {
            "prefill": StepBatch((Span(0, 0, ids[:-1], True),)),
            "decode": StepBatch(spans),
            "decode_1": StepBatch(spans[:1]),
        }
        self._runner, self._workload, self._clock = runner, workload, clock
        self._seconds: dict[str, list[float]] = {name: [] for name in self._steps}

    def run(self) -> None:
        """One round. Each kind of step is run once before it counts: another runtime was in the caches."""
        for name, step in self._steps.items():
            run_step(self._runner, step)
            if name == "prefill":
                self._fill_slots()
            self._seconds[name] += self._repeated(step)

    def timing(self, scale: float) -> Timing:
        """Of a model that takes `scale` times as long."""
        return Timing(**{f"{name}_ms": median(seconds) * scale * 1e3 for name, seconds in self._seconds.items()})

    def _fill_slots(self) -> None:
        """Memory that nobody has written is not there: reading it would cost nothing."""
        for slot in range(1, self._workload.num_sequences):
            self._runner.copy_prefix(0, slot, self._workload.num_prompt_tokens)

    def _repeated(self, step: StepBatch) -> list[float]:
        seconds: list[float] = []
        while len(seconds) < _MAX_REPEATS and sum(seconds) < _ENOUGH_SECONDS:
            began = self._clock()
            run_step(self._runner, step)
            seconds.append(self._clock() - began)
        return seconds


def _take_turns(benches: dict[str, Bench], failures: dict[str, Exception], progress: Progress) -> None:
    """Run all rounds, as long as there are several to compare; what fails is taken out."""
    for index in range(_NUM_ROUNDS):
        progress(STAGE, index / _NUM_ROUNDS)
        for name in list(benches):
            if len(benches) > 1:
                with _noted(failures, name):
                    benches[name].run()
            if name in failures:
                del benches[name]
    progress(STAGE, 1.0)


@contextmanager
def _noted(failures: dict[str, Exception], runtime: str) -> Iterator[None]:
    """Whatever keeps a runtime from running here is a reason to take another one; libraries raise errors of their
    own."""
    try:
        yield
    except Exception as error:
        failures[runtime] = error


@contextmanager
def _built(plan: Options, spec: ModelSpec, measured: Measured, folder: Path, progress: Progress) -> Iterator[Runner]:
    """The runner of an artifact with weights at random, in a folder of its own."""

    def noted(stage: str, fraction: float) -> None:
        progress(f"measure {plan.runtime}: {stage}", fraction)

    workload = measured.workload
    plan = dataclasses.replace(
        plan,
        num_slots=workload.num_sequences,
        max_length=min(plan.max_length, _MAX_LENGTH),
        prefill_chunk=workload.num_prompt_tokens,
    )
    with TemporaryDirectory(prefix=".measure-", dir=folder) as place:
        artifact = Path(place)
        details = lower(spec, RandomWeights(spec, num_drawn=_NUM_DRAWN), artifact, plan, progress=noted)
        manifest = describe(artifact, spec, plan, details, model_name="random")
        runner = load_runner(artifact, manifest, num_threads=measured.num_threads, device="cpu")
        try:
            yield runner
        finally:
            runner.close()
