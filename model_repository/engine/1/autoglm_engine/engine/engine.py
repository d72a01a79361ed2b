"""The engine: requests in, events out, one step at a time.

`submit` and `cancel` may be called from any thread and take effect at the next step; one thread calls `step`.
A step: collect the step in flight (wait, sample) -> take what arrived -> end what was cancelled or is late -> plan ->
issue -> put what was collected into answers, while a device computes -> events. Each request ends with exactly one last
event; one that is not streamed has no other but the heartbeats that it asked for.

Plans are made, and so slots given away, copied and rewritten, only while no step is in flight. A collected token that
ends its request whatever the text says (end of sequence, length) frees the slot before the plan. One that completes a
stop string does so after the issue: the request ends, its row of the step in flight is dropped when that is collected,
and the slot keeps what it held before that step, which writes past it.

A step takes one token of each sequence that it gives logits, or several where it drafted (`drafter`, `choices`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice

from autoglm_engine.core import Event, FinishReason, Request
from autoglm_engine.engine.choices import Choices, choose
from autoglm_engine.engine.drafter import FIXED_ROWS, Drafter
from autoglm_engine.errors import DeviceError, EngineError, InvalidRequest, ShuttingDown
from autoglm_engine.metrics import Metrics, NoMetrics
from autoglm_engine.own_failures import own_failure
from autoglm_engine.runners.base import Pending, Runner
from autoglm_engine.sampling.sampler import Sampled, TokenSampler
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.tokenizer.output import Output

from .admission import AdmissionPolicy, make_policy
from .image_requests import ImageRequests
from .images.vision import Vision
from .output_processor import OutputProcessor
from .request_queue import Inbox
from .scheduler import Scheduler, StepPlan
from .sequence import Sequence, Taken, Waiting
from .slots import Allocation, SlotTable
from .stats import EngineMetrics, EngineStats
from .stream_pacer import AlwaysOpen, StreamGate, StreamPacer

_log = logging.getLogger(__name__)
_GATHERING_SECONDS = 0.001  # between two looks at requests that wait for company
_PREPARING_SECONDS = 0.02  # where all of them wait for their guides: for deadlines and heartbeats


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was issued."""

    plan: StepPlan
    pending: Pending


class Engine:
    """`clock` and all request times are seconds of one monotonic clock. `settings`: plain ones where they are None.
    `policy`: the one that the settings name, where it is None. `fixed_rows`: what a step costs beside its rows, in
    rows. `vision`: None for a model of text alone."""

    def __init__(
        self,
        runner: Runner,
        token_text: TokenText,
        eos_token_ids: Iterable[int],
        settings: EngineSettings | None = None,
        *,
        gate: StreamGate | None = None,
        metrics: Metrics | None = None,
        policy: AdmissionPolicy | None = None,
        fixed_rows: float = FIXED_ROWS,
        vision: Vision | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._limits = runner.limits
        self._token_text = token_text
        self._eos = frozenset(eos_token_ids)
        self._settings = settings or plain_settings()
        self._pacer = StreamPacer(self._settings, gate or AlwaysOpen())
        self._clock = clock
        self._inbox = Inbox(self._settings.max_queue)
        num_slots = self._settings.num_slots(self._limits.num_slots)
        slots = SlotTable(num_slots, self._limits.max_length, prefix_reuse=self._settings.prefix_reuse)
        policy = policy or make_policy(self._settings, slots)
        self._drafter = Drafter(self._settings, self._limits, fixed_rows)
        budget = self._settings.token_budget or self._limits.step_tokens
        self._scheduler = Scheduler(self._limits, slots, budget, policy, self._drafter)
        self._in_flight: InFlight | None = None
        metrics = metrics or NoMetrics()
        images = (
            ImageRequests(vision, self._scheduler, self._limits, self._settings, metrics, clock) if vision else None
        )
        self._images = images
        self._tally = EngineMetrics(metrics)
        self._tally.report(self._scheduler)
        self._answers = OutputProcessor(self._scheduler, self._inbox, self._tally)

    # ---- any thread

    def submit(self, request: Request) -> None:
        """Queue the request. Raises QueueFull, ShuttingDown, or InvalidRequest where it cannot be served at all."""
        _check(request, self._limits.max_length, self._limits.vocab_size)
        self._drafter.check(request)
        if request.images:
            self._check_images(request)
        if request.guide:
            request.guide.start()
        self._inbox.submit(request, self._clock())

    def cancel(self, request_ids: Iterable[str]) -> int:
        """End these requests with the next step; how many of them are in flight."""
        return self._inbox.cancel(request_ids)

    def refuse(self, failure: EngineError) -> None:
        """New requests from now on. `shut_down` follows."""
        self._inbox.close(str(failure))

    @property
    def has_work(self) -> bool:
        in_flight = self._in_flight is not None
        return in_flight or self._inbox.has_news or bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def is_gathering(self) -> bool:
        """Requests wait for company and nothing is computed: a step has nothing to do until time has passed or news
        come."""
        return self._in_flight is None and not self._scheduler.running and bool(self._scheduler.waiting)

    @property
    def rest_seconds(self) -> float | None:
        """So long whoever steps may rest where no news come; None: for ever."""
        if not self.has_work:
            return None
        if not self.is_gathering or self._inbox.has_news or (self._images and self._images.has_news):
            return 0.0
        is_ready = any(waiting.is_ready for waiting in self._scheduler.waiting)
        return _GATHERING_SECONDS if is_ready else _PREPARING_SECONDS

    @property
    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._tally.stats

    # ---- the step thread

    def step(self) -> list[Event]:
        """Collect the step in flight, issue the next one, and return what the collected one has to send, in order."""
        self._collect()
        now = self._clock()
        self._take_news(now)
        self._end_late(now)
        if self._images:
            self._images.prepare()
        self._end_hopeless(now)
        plan = self._scheduler.plan(lambda waiting, allocation: self._admit(waiting, allocation, now), now)
        self._end_failed(plan, now)
        self._issue(plan)
        now = self._clock()
        self._answers.tell_all(now)
        self._speak(now)
        self._check_when_idle()
        self._tally.report(self._scheduler)
        return self._answers.hand_over()

    def shut_down(self, failure: EngineError | None = None) -> list[Event]:
        """Refuse new requests and end all others with `failure`, ShuttingDown where it is None. Also right after a step
        that raised: its events come first. The step in flight is abandoned: nobody is left to want it."""
        failure = failure or ShuttingDown("the server is shutting down")
        self._inbox.close(str(failure))
        arrivals, _ = self._inbox.drain()
        self._scheduler.waiting.extend(arrivals)
        self._answers.fail_all(self._clock(), failure)
        self._in_flight = None
        if self._images:
            self._images.close()
        self._tally.report(self._scheduler)
        return self._answers.hand_over()

    def _take_news(self, now: float) -> None:
        arrivals, cancelled = self._inbox.drain()
        self._scheduler.waiting.extend(arrivals)
        if self._images:
            self._open_images(self._images, arrivals, now)
        if cancelled:
            ids = set(cancelled)
            self._end_where(lambda request: request.id in ids, FinishReason.CANCELLED, now)

    def _end_late(self, now: float) -> None:
        self._end_where(lambda r: r.deadline is not None and r.deadline <= now, FinishReason.DEADLINE, now)

    def _check_images(self, request: Request) -> None:
        if self._images is None:
            raise InvalidRequest(f"the prompt has {len(request.images)} images, and the model reads none")
        self._images.check(request)

    def _open_images(self, images: ImageRequests, arrivals: Iterable[Waiting], now: float) -> None:
        for waiting in [waiting for waiting in arrivals if waiting.request.images]:
            try:
                waiting.images = images.open(waiting.request)
            except BaseException as error:
                failure = own_failure(error, waiting.request.id)
                self._answers.cut_off_waiting(waiting, now, failure=failure)

    def _end_hopeless(self, now: float) -> None:
        for waiting in [w for w in self._scheduler.waiting if (w.request.guide or w.images) and w.failure]:
            self._answers.cut_off_waiting(waiting, now, failure=waiting.failure)

    def _end_where(self, condition: Callable[[Request], bool], reason: FinishReason, now: float) -> None:
        for sequence in [s for s in self._scheduler.running if condition(s.request)]:
            self._answers.cut_off(sequence, now, reason)
        for waiting in [w for w in self._scheduler.waiting if condition(w.request)]:
            self._answers.cut_off_waiting(waiting, now, reason)

    def _end_failed(self, plan: StepPlan, now: float) -> None:
        self._inbox.left_queue(len(plan.refused))
        for waiting, failure in plan.refused:
            self._answers.refuse(waiting, now, failure)
        for sequence, failure in plan.failed:
            self._answers.cut_off(sequence, now, failure=failure)

    def _speak(self, now: float) -> None:
        """Who has news, and may: see `stream_pacer`."""
        for sequence in self._pacer.streams_due(self._scheduler.running, now):
            self._answers.speak(sequence, now)
        for source in self._pacer.heartbeats_due(self._scheduler.running, self._queue_head(), now):
            self._answers.beat(source, now)

    def _admit(self, waiting: Waiting, allocation: Allocation, now: float) -> Sequence:
        request = waiting.request
        num_prompt = len(request.prompt_ids)
        tokens = self._scheduler.slots.tokens[allocation.slot]
        tokens[:num_prompt] = waiting.tokens
        max_tokens = min(request.sampling.max_tokens, self._limits.max_length - num_prompt)
        sampler = TokenSampler(request.sampling, request.prompt_ids, sorted(self._eos), max_tokens, request.guide)
        if waiting.images:
            waiting.images.begin(allocation.num_reused)
        return Sequence(
            request=request,
            arrival=waiting.arrival,
            slot=allocation.slot,
            tokens=tokens,
            num_tokens=num_prompt,
            num_computed=allocation.num_reused,
            num_cached=allocation.num_reused,
            max_tokens=max_tokens,
            sampler=sampler,
            output=Output(self._token_text, request.sampling.stop, request.sampling.min_tokens),
            admitted_at=now,
            last_event_at=waiting.last_event_at,
            speculation=self._drafter.begin(request, tokens) if sampler.is_greedy else None,
            images=waiting.images,
        )

    def _issue(self, plan: StepPlan) -> None:
        """Also the bookkeeping of admissions: a device computes by then."""
        self._tally.steps += bool(plan.spans)
        try:
            for copy in plan.copies:
                self._runner.copy_prefix(copy.source, copy.target, copy.length)
            if plan.spans:
                self._in_flight = InFlight(plan, self._runner.issue(plan.batch))
        except Exception as error:  # the loop outlives whatever a runner raises
            self._fail(plan, error)
        self._inbox.left_queue(len(plan.admitted))
        self._tally.admitted(plan.admitted)
        if self._images:
            self._images.admitted(plan.admitted)

    def _collect(self) -> None:
        """Wait for the step in flight and take its tokens, except of requests that ended meanwhile."""
        if self._in_flight is None:
            return
        step, self._in_flight = self._in_flight, None
        try:
            chosen = choose(step.pending.result(), step.plan)
        except Exception as error:
            self._fail(step.plan, error)
            return
        self._scheduler.computed(step.plan)
        now = self._clock()
        for choices in chosen:
            if choices.sequence.is_running:
                try:
                    self._take_all(choices, now)
                except BaseException as error:
                    self._answers.cut_off(
                        choices.sequence, now, failure=own_failure(error, choices.sequence.request.id)
                    )

    def _take_all(self, choices: Choices, now: float) -> None:
        sequence = choices.sequence
        num_accepted = choices.take(
            lambda sampled: self._take(sequence, sampled, now), lambda: self._scheduler.accepted(sequence)
        )
        if sequence.speculation:
            sequence.speculation.judge(choices.first.token_id, len(choices.drafts), num_accepted)
        self._tally.drafted(len(choices.drafts), num_accepted)

    def _take(self, sequence: Sequence, sampled: Sampled, now: float) -> None:
        if sampled.token_id < 0:
            self._answers.cut_off(sequence, now, failure=_failure(sampled))
            return
        is_eos = sampled.token_id in self._eos and not sequence.request.sampling.ignore_eos
        self._answers.note(sequence, Taken(sampled.token_id, sampled.logprobs, is_eos, now))

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        """Whatever the runner was doing is lost, and what it holds cannot be trusted. Raises a DeviceError on: no step
        after it can succeed, and whoever runs the engine should start it anew."""
        if isinstance(error, DeviceError):
            raise error
        _log.error("the runner failed in step %d", self._tally.steps, exc_info=error)
        failure = error if isinstance(error, EngineError) else EngineError(f"the model runner failed: {error}")
        now = self._clock()
        for sequence in plan.sequences:
            self._answers.cut_off(sequence, now, failure=failure)
        self._scheduler.slots.forget_retained()

    def _queue_head(self) -> Iterable[Waiting]:
        """The requests that are told of while they wait: those that will soon have a slot, and as many of those whose
        guide is not ready."""
        waiting, most = self._scheduler.waiting, 2 * self._limits.num_slots
        ready = islice((one for one in waiting if one.is_ready), most)
        return chain(ready, islice((one for one in waiting if not one.is_ready), most))

    def _check_when_idle(self) -> None:
        if not self._scheduler.running and not self._scheduler.waiting:
            slots = self._scheduler.slots
            slots.check()
            assert not slots.num_busy, f"{slots.num_busy} slots are busy and no request runs"


def _check(request: Request, max_length: int, vocab_size: int) -> None:
    """What no slot could serve; the options' own ranges were checked at the door."""
    num_prompt = len(request.prompt_ids)
    if not 1 <= num_prompt < max_length:
        raise InvalidRequest(f"the prompt has {num_prompt} tokens; it must have between 1 and {max_length - 1}")
    low, high = int(request.prompt_ids.min()), int(request.prompt_ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise InvalidRequest(f"the prompt holds token {wrong}; tokens are between 0 and {vocab_size - 1}")
    assert bool(request.guide) == request.sampling.is_guided, "a guide that nobody asked for"
    if request.sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {request.sampling.max_tokens}; it must be at least 1")


def _failure(sampled: Sampled) -> EngineError:
    return sampled.failure or EngineError("the model computed logits that are not finite for this request")
