"""One request while it is served: what waits for a slot, what runs in one, and what it has not yet told its reader."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autoglm_engine.core import Event, FinishReason, Request, Stages, TokenIds, TokenLogprobs, Usage
from autoglm_engine.engine.images.request_images import RequestImages
from autoglm_engine.engine.speculation.policy import Speculation
from autoglm_engine.errors import EngineError
from autoglm_engine.sampling.sampler import TokenSampler
from autoglm_engine.tokenizer.output import Output


class _Referable:
    """Weak references need a slot of their own, which dataclasses make since Python 3.11 only."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, eq=False)
class Waiting(_Referable):
    """A request without a slot."""

    request: Request
    queued_at: float
    last_event_at: float
    images: RequestImages | None = None  # None: it has none

    @property
    def tokens(self) -> TokenIds:
        """Of its prompt, as slots hold them."""
        return self.images.tokens if self.images else self.request.prompt_ids

    @property
    def arrival(self) -> float:
        return self.request.arrival or self.queued_at

    @property
    def is_ready(self) -> bool:
        """It can begin: its guide is compiled, and its images are encoded, where it has any."""
        is_guide_ready = self.request.guide is None or self.request.guide.is_ready
        return is_guide_ready and (self.images is None or self.images.is_ready)

    @property
    def failure(self) -> EngineError | None:
        """Why it will never begin."""
        failure = self.request.guide.failure if self.request.guide else None
        return failure or (self.images.failure if self.images else None)

    def leave(self) -> None:
        """It ends without a slot."""
        if self.images:
            self.images.release()

    def stages(self, now: float) -> Stages:
        return Stages(queue_ms=_queue_ms(self.request, self.arrival, now), tokenize_ms=self.request.tokenize_ms)

    def event(
        self, now: float, *, finish_reason: FinishReason | None = None, failure: EngineError | None = None
    ) -> Event:
        usage = Usage(len(self.request.prompt_ids), 0, 0)
        return _with_failure(Event(self.request.id, (), usage, self.stages(now), finish_reason), failure)

    def heartbeat(self, now: float) -> Event:
        return self.event(now)


@dataclass(frozen=True, slots=True)
class Taken:
    """A token that a sequence took and has yet to put into its answer."""

    token_id: int
    logprobs: TokenLogprobs | None
    is_eos: bool
    at: float


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in a slot. `tokens[:num_tokens]` are prompt and completion, in the slot table's own row;
    `tokens[:num_computed]` have their keys and values in the slot. All three are for planning, while it runs: once its
    slot is another's, `tokens` is too. Its answer is made from what it is told."""

    request: Request
    arrival: float
    slot: int
    tokens: TokenIds  # [max_length], the slot's row
    num_tokens: int
    num_computed: int
    num_cached: int
    max_tokens: int  # of the completion: what was asked, or the room in the slot
    sampler: TokenSampler
    output: Output
    admitted_at: float
    last_event_at: float
    first_token_at: float | None = None
    last_token_at: float = 0.0
    is_running: bool = True  # in its slot; afterwards at most its last event is due
    sent_any: bool = False
    num_told: int = 0  # tokens put into the answer
    speculation: Speculation | None = None  # None: nothing is drafted
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the tokens not yet taken
    images: RequestImages | None = None  # None: it has none

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return self.num_tokens - self.num_computed

    def take(self, token_id: int) -> bool:
        """Append the next token of the completion; whether it is the last that fits."""
        self.tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        self.sampler.count(token_id)
        return self.num_completion_tokens >= self.max_tokens

    def tell(self, taken: Taken) -> FinishReason | None:
        """Put the next of the tokens taken into the answer; the reason, if the request ends with it."""
        if self.first_token_at is None:
            self.first_token_at = taken.at
        self.last_token_at = taken.at
        self.num_told += 1
        if taken.logprobs:
            self.logprobs.append(taken.logprobs)
        return self._end_at_eos(taken.token_id) if taken.is_eos else self._end_at_text(taken.token_id)

    def _end_at_eos(self, token_id: int) -> FinishReason:
        if not self.output.flush():
            self.output.end_with(token_id)
        return FinishReason.STOP

    def _end_at_text(self, token_id: int) -> FinishReason | None:
        if self.output.push(token_id):
            return FinishReason.STOP
        if self.num_told < self.max_tokens:
            return None
        return FinishReason.STOP if self.output.flush() else FinishReason.LENGTH

    def event(
        self, now: float, *, finish_reason: FinishReason | None = None, failure: EngineError | None = None
    ) -> Event:
        """What is ready, as one event; everything, where it is the last."""
        if finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
            self.output.flush()
        token_ids, is_first = self.output.take()
        logprobs = tuple(self.logprobs[: len(token_ids)])
        del self.logprobs[: len(token_ids)]
        self.last_event_at = now
        self.sent_any = self.sent_any or bool(token_ids)
        event = Event(
            request_id=self.request.id,
            token_ids=token_ids,
            usage=Usage(self.num_prompt_tokens, self.num_told, self.num_cached),
            stages=self._stages(now),
            finish_reason=finish_reason,
            text_bytes=self.output.text_bytes,
            is_first=is_first,
            logprobs=logprobs,
        )
        return _with_failure(event, failure)

    def heartbeat(self, now: float) -> Event:
        """What is ready stays for a later event."""
        usage = Usage(self.num_prompt_tokens, self.num_told, self.num_cached)
        return Event(self.request.id, (), usage, self._stages(now))

    def _stages(self, now: float) -> Stages:
        first = self.first_token_at
        return Stages(
            queue_ms=_queue_ms(self.request, self.arrival, self.admitted_at),
            tokenize_ms=self.request.tokenize_ms,
            prefill_ms=((now if first is None else first) - self.admitted_at) * 1e3,
            decode_ms=0.0 if first is None else (now - first) * 1e3,
        )


def _queue_ms(request: Request, arrival: float, until: float) -> float:
    return max(0.0, (until - arrival) * 1e3 - request.tokenize_ms)


def _with_failure(event: Event, failure: EngineError | None) -> Event:
    return event if failure is None else replace(event, error=str(failure), error_code=failure.code)
