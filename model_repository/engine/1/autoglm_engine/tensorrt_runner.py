"""Runs a TensorRT engine on one GPU; `tensorrt_load` makes it of an artifact.

A step, all of it enqueued on one stream: what changed of the slots' logit adjustments; one copy of the small inputs to
the device; a decode call of the spans of one token; a prefill call for each longer span; one copy of the candidates back;
an event, which `Pending.result` waits for. Row i of the decode call is slot i. Rows below the highest one that are not in
the step are idle: they write to the last position of their slot, which no call ever reads.

Nothing is allocated after load. The first failure of the GPU is final: every later call raises the same sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from .core import Candidates, Logits, Span, StepBatch
from .cuda import Cuda
from .device_memory import DeviceMemory, free_all, readable
from .errors import DeviceError, EngineError
from .kv_cache import KeyValueCache
from .logit_state import LogitState
from .plan import Plan
from .runner import Limits
from .span_checks import check_batch, check_prefix
from .step_buffers import NUM_TURNS
from .step_inputs import StepInputs
from .step_outputs import Row, StepOutputs
from .tensor_shapes import TensorShapes
from .trt_calls import CallFactory, DecodeCalls, PrefillCall

_log = logging.getLogger(__name__)
_FINAL = "the GPU failed before and this process can no longer use it; restart the server"


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was issued."""

    number: int
    rows: tuple[Row, ...]

    @property
    def turn(self) -> int:
        return self.number % NUM_TURNS


@dataclass(frozen=True, slots=True)
class StepPending:
    """See `runner.Pending`. What it gives is the caller's own, but for `full_row`, which is good until the next step is
    issued. It may be asked until the step after the next is."""

    step: Step
    collect: Callable[[Step], Candidates]

    def result(self) -> Candidates:
        return self.collect(self.step)


class TensorRTRunner:
    """See `runner.Runner`. `memory`: purpose -> bytes, all of which were allocated at load."""

    def __init__(self, plan: Plan, cuda: Cuda, shapes: TensorShapes, limits: Limits, cleanup: ExitStack) -> None:
        """`cleanup` is what `close` unwinds, what was made last first."""
        self._cuda, self._cleanup = cuda, cleanup
        self._limits = limits
        self._number = 0
        self._is_closed = self._has_failed = False
        memory = DeviceMemory(cuda, cleanup)
        self._cache = KeyValueCache(cuda, memory, shapes)
        self._logit_state = LogitState(cuda, memory, shapes)
        self._inputs, self._outputs = StepInputs(cuda, memory, shapes), StepOutputs(cuda, memory, shapes)
        self._events = [memory.event() for _ in range(NUM_TURNS)]
        self._decode, self._prefill = self._create_calls(plan, memory, shapes)
        self._prepare()
        memory.note("weights", plan.weight_bytes)
        self.memory: Mapping[str, int] = memory.summary
        _log.info("memory in use: %s", readable(self.memory))

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def key_values(self) -> KeyValueCache:
        """For who checks the GPU (`device_check`)."""
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
            self._cache.copy_prefix(source, target, length)

    def close(self) -> None:
        """Waits for what is in flight, then frees everything, whatever fails on the way."""
        if self._is_closed:
            return
        self._is_closed = True
        free_all(self._cuda, self._cleanup)

    # ---- load

    def _create_calls(self, plan: Plan, memory: DeviceMemory, shapes: TensorShapes) -> tuple[DecodeCalls, PrefillCall]:
        num_bytes = plan.activation_bytes
        factory = CallFactory(plan, self._cuda, self._cleanup, memory.allocate("activations", num_bytes), num_bytes)
        addresses = self._inputs.decode_addresses | self._outputs.decode_addresses | self._cache.addresses()
        decode = DecodeCalls(factory, shapes, addresses | self._logit_state.addresses)
        return decode, PrefillCall(factory, shapes, self._logit_state.gathered_addresses)

    def _prepare(self) -> None:
        self._inputs.stage_idle(0, self._limits.num_slots)
        self._inputs.upload(0, has_decode=True, num_prefill=0)
        self._decode.prepare()
        self._cuda.synchronize()

    # ---- a step

    def _issue(self, spans: Sequence[Span]) -> Step:
        self._number += 1
        step = Step(self._number, Row.of_spans(spans))
        decode = [span for span in spans if len(span.token_ids) == 1]
        prefill = [span for span in spans if len(span.token_ids) > 1]
        self._cuda.wait(self._events[step.turn])  # for the step that had this turn's pinned memory
        self._logit_state.apply(spans)
        bucket = self._stage(step.turn, decode, prefill)
        self._inputs.upload(step.turn, has_decode=bool(decode), num_prefill=len(prefill))
        if decode:
            self._decode.run(bucket)
        for call, span in enumerate(prefill):
            self._run_prefill(call, span)
        if step.rows:
            self._outputs.download(step.turn, has_decode=bool(decode), num_prefill=len(prefill))
        self._cuda.record(self._events[step.turn])
        return step

    def _stage(self, turn: int, decode: Sequence[Span], prefill: Sequence[Span]) -> int:
        """Write the small inputs; returns the decode call's bucket, 0 for none."""
        inverse_temperatures = self._logit_state.inverse_temperatures
        for call, span in enumerate(prefill):
            self._inputs.stage_prefill(turn, call, span, float(inverse_temperatures[span.slot]))
        if not decode:
            return 0
        bucket = self._decode.bucket(max(span.slot for span in decode))
        self._inputs.stage_decode(turn, bucket, decode, inverse_temperatures)
        return bucket

    def _run_prefill(self, call: int, span: Span) -> None:
        if span.wants_logits:
            self._logit_state.gather(span.slot)
        addresses = self._inputs.prefill_addresses(call) | self._outputs.prefill_addresses(call)
        self._prefill.run(len(span.token_ids), addresses | self._cache.addresses(span.slot))
        if span.wants_logits:
            self._outputs.keep_prefill_logits(span.slot)

    # ---- its result

    def _collect(self, step: Step) -> Candidates:
        self._check_usable()
        if step.number <= self._number - NUM_TURNS:
            raise ValueError(f"the result of step {step.number} was overwritten by step {self._number}")
        with self._failing_for_good():
            self._cuda.wait(self._events[step.turn])
            found = self._outputs.candidates(step.turn, step.rows)
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
