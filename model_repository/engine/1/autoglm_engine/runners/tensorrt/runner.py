"""Runs a TensorRT engine on one GPU; `runners.tensorrt.load` makes it of an artifact.

A step, all of it enqueued on one stream: what changed of the slots' logit adjustments; one copy of the small inputs to
the device; a decode call of the spans of one token; prefill calls of the longer ones, several in a call where that is
cheaper; one copy of the candidates back; an event, which `Pending.result` waits for. Row i of the decode call is slot
i. Rows of a call that are not in the step are idle: they write to the last positions of their slot, which no call ever
reads.

Nothing is allocated after load. The first failure of the GPU is final: every later call raises the same sentence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from autoglm_engine.core import Candidates, Logits, Span, StepBatch
from autoglm_engine.errors import DeviceError, EngineError
from autoglm_engine.runners.base import Limits
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory, free_all, readable
from autoglm_engine.runners.span_checks import check_batch, check_prefix

from .calls import CallFactory, DecodeCalls, PrefillCalls, graphs_of, warm_up_shapes
from .engine_plan import EnginePlan
from .features import FeatureRows
from .kv_cache import KeyValueCache
from .logit_state import LogitState
from .prefill_batches import PrefillBatch, batches_of
from .shapes import TensorShapes
from .step_buffers import NUM_TURNS, Region
from .step_inputs import StepInputs
from .step_outputs import Row, StepOutputs, rows_of

_log = logging.getLogger(__name__)
_FINAL = "the GPU failed before and this process can no longer use it; restart the server"


RESERVE_BYTES = 256 << 20  # free after load: kernels that are loaded or compiled later, and other users of the card


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is issued. `rows`: of its logits, in the spans' order."""

    number: int
    decode: tuple[Span, ...]
    batches: tuple[PrefillBatch, ...]
    inputs: tuple[Region, ...]  # of the batches
    outputs: tuple[Region, ...]
    rows: tuple[Row, ...]

    @property
    def turn(self) -> int:
        return self.number % NUM_TURNS


@dataclass(frozen=True, slots=True)
class StepPending:
    """See `base.Pending`. What it gives is the caller's own, but for `full_row`, which is good until the next step is
    issued. It may be asked until the step after the next is."""

    step: Step
    collect: Callable[[Step], Candidates]

    def result(self) -> Candidates:
        return self.collect(self.step)


class TensorRTRunner:
    """See `base.Runner`. `memory`: purpose -> bytes, all of which were allocated at load."""

    def __init__(self, plan: EnginePlan, cuda: Cuda, shapes: TensorShapes, limits: Limits, cleanup: ExitStack) -> None:
        """`cleanup` is what `close` unwinds, what was made last first."""
        self._cuda, self._cleanup = cuda, cleanup
        self._limits = limits
        self._number = 0
        self._is_closed = self._has_failed = False
        self._suspects: set[int] = set()  # slots whose keys and values may not be finite
        memory = DeviceMemory(cuda, cleanup)
        self._cache = KeyValueCache(cuda, memory, shapes)
        self._logit_state = LogitState(cuda, memory, shapes)
        self._features = FeatureRows(cuda, memory, shapes)
        self._inputs, self._outputs = StepInputs(cuda, memory, shapes), StepOutputs(cuda, memory, shapes)
        self._events = [memory.event() for _ in range(NUM_TURNS)]
        self._shapes = shapes
        free, began = cuda.free_memory(), time.monotonic()
        self._decode, self._prefill = self._create_calls(plan, memory, shapes)
        self._prepare()
        plan.keep_kernels()
        memory.note("weights", plan.weight_bytes)
        memory.note("graphs", self._checked_memory(free - memory.summary["activations"]))
        self.memory: Mapping[str, int] = memory.summary
        seconds, count = time.monotonic() - began, len(graphs_of(shapes))
        _log.info("%d decode shapes were run in %.1f s; memory in use: %s", count, seconds, readable(self.memory))

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def key_values(self) -> KeyValueCache:
        """For who checks the GPU (`runners.device_check.check`)."""
        return self._cache

    def issue(self, batch: StepBatch) -> StepPending:
        self._check_usable()
        check_batch(batch, self._limits)
        with self._failing_for_good():
            return StepPending(self._issue(batch.spans), self._collect)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self._check_usable()
        check_prefix(source, target, length, self._limits)
        with self._failing_for_good():
            self._clear_suspect(target)
            self._cache.copy_prefix(source, target, length)

    def close(self) -> None:
        """Waits for what is in flight, then frees everything, whatever fails on the way."""
        if self._is_closed:
            return
        self._is_closed = True
        free_all(self._cuda, self._cleanup)

    # ---- load

    def _create_calls(
        self, plan: EnginePlan, memory: DeviceMemory, shapes: TensorShapes
    ) -> tuple[DecodeCalls, PrefillCalls]:
        num_bytes = plan.activation_bytes
        factory = CallFactory(plan, self._cuda, self._cleanup, memory.allocate("activations", num_bytes), num_bytes)
        inputs = self._inputs.addresses(self._inputs.decode)
        addresses = inputs | self._outputs.decode_addresses | self._cache.addresses()
        decode = DecodeCalls(factory, shapes, {**addresses, **self._logit_state.addresses, **self._features.addresses})
        fixed = {**self._logit_state.gathered_addresses, **self._features.addresses}
        return decode, PrefillCalls(factory, shapes, fixed)

    def _prepare(self) -> None:
        """Run every decode call and prefill calls of all kinds, over idle rows only."""
        self._inputs.stage_idle(0, self._inputs.decode, self._limits.num_slots)
        self._inputs.upload(0, [self._inputs.decode])
        self._decode.prepare()
        for rows, tokens, keys in warm_up_shapes(self._shapes):
            self._run_idle(PrefillBatch((), 0, rows, tokens), keys)
        self._cuda.synchronize()

    def _run_idle(self, batch: PrefillBatch, num_positions: int) -> None:
        (inputs,), (outputs,) = self._inputs.prefill([batch]), self._outputs.prefill([batch])
        self._inputs.stage_idle(0, inputs, batch.num_rows)
        self._inputs.upload(0, [inputs])
        self._run_prefill(batch, inputs, outputs, num_positions)
        self._cuda.synchronize()  # pinned memory is written again

    def _checked_memory(self, free_before: int) -> int:
        """What contexts, kernels and graphs took of the `free_before` bytes. Raises DeviceError where too little is
        left."""
        free = self._cuda.free_memory()
        if free < RESERVE_BYTES:
            raise DeviceError(
                f"{free >> 20} MiB are free after load, {RESERVE_BYTES >> 20} MiB must be", is_out_of_memory=True
            )
        return max(free_before - free, 0)

    # ---- a step

    def _issue(self, spans: Sequence[Span]) -> Step:
        self._number += 1
        step = self._step(spans)
        self._cuda.wait(self._events[step.turn])  # for the step that had this turn's pinned memory
        for span in spans:
            if not span.start:
                self._clear_suspect(span.slot)
        self._logit_state.apply(spans)
        self._stage(step)
        self._features.begin_step()
        if step.decode:
            self._features.upload(step.turn, step.decode)
            self._run_decode(step.decode)
        for batch, inputs, outputs in zip(step.batches, step.inputs, step.outputs, strict=True):
            self._features.upload(step.turn, batch.spans)
            self._run_prefill(batch, inputs, outputs, batch.end)
        if step.rows:
            decode = [self._outputs.decode] if step.decode else []
            self._outputs.download(step.turn, [*decode, *step.outputs])
        self._cuda.record(self._events[step.turn])
        return step

    def _step(self, spans: Sequence[Span]) -> Step:
        decode = tuple(span for span in spans if len(span.token_ids) == 1)
        batches = batches_of([span for span in spans if len(span.token_ids) > 1], self._shapes)
        inputs, outputs = self._inputs.prefill(batches), self._outputs.prefill(batches)
        rows = rows_of(spans, self._outputs.decode, batches, outputs)
        return Step(self._number, decode, tuple(batches), tuple(inputs), tuple(outputs), rows)

    def _stage(self, step: Step) -> None:
        """Write the small inputs and enqueue their copy."""
        inverse_temperatures = self._logit_state.inverse_temperatures
        for batch, region in zip(step.batches, step.inputs, strict=True):
            self._inputs.stage_prefill(step.turn, region, batch, inverse_temperatures)
        regions = list(step.inputs)
        if step.decode:
            self._inputs.stage_decode(step.turn, self._decode_rows(step.decode), step.decode, inverse_temperatures)
            regions.insert(0, self._inputs.decode)
        self._inputs.upload(step.turn, regions)

    def _decode_rows(self, spans: Sequence[Span]) -> int:
        return self._decode.rows(max(span.slot for span in spans))

    def _run_decode(self, spans: Sequence[Span]) -> None:
        self._decode.run(self._decode_rows(spans), max(span.start for span in spans) + 1)

    def _run_prefill(self, batch: PrefillBatch, inputs: Region, outputs: Region, num_positions: int) -> None:
        if batch.wants_logits:
            self._logit_state.gather(batch.first_slot, batch.num_rows)
        addresses = self._inputs.addresses(inputs) | self._outputs.prefill_addresses(outputs)
        addresses |= self._cache.addresses(batch.first_slot)
        self._prefill.run(batch.num_rows, batch.num_tokens, num_positions, addresses)
        self._outputs.keep_prefill_logits(batch)

    def _clear_suspect(self, slot: int) -> None:
        """The slot begins anew: what is not finite would reach its next owner through every mask."""
        if slot in self._suspects:
            self._suspects.remove(slot)
            self._cache.clear(slot)

    # ---- its result

    def _collect(self, step: Step) -> Candidates:
        self._check_usable()
        if step.number <= self._number - NUM_TURNS:
            raise ValueError(f"the result of step {step.number} was overwritten by step {self._number}")
        with self._failing_for_good():
            self._cuda.wait(self._events[step.turn])
            found = self._outputs.candidates(step.turn, step.rows)
        _, _, log_sum_exp = found
        self._suspects.update(step.rows[row].slot for row in np.flatnonzero(~np.isfinite(log_sum_exp)))
        return Candidates(*found, full_row=partial(self._fetch, step))

    def _fetch(self, step: Step, row: int) -> Logits:
        self._check_usable()
        if step.number != self._number:
            raise ValueError(f"the logits of step {step.number} were overwritten by step {self._number}")
        with self._failing_for_good():
            return self._outputs.fetch(step.rows[row].slot)

    # ---- what is left after a failure

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ValueError("the runner is closed")
        if self._has_failed:
            raise DeviceError(_FINAL)

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """What the GPU did of a step that failed cannot be told, and most failures are the last thing that it says."""
        try:
            yield
        except EngineError:
            self._has_failed = True
            raise
        except Exception as error:
            self._has_failed = True
            raise DeviceError(f"the step could not be computed: {error}") from error
