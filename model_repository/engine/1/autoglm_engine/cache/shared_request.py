"""One computation that several requests may share, and what each of them was told of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import accumulate

from autoglm_engine.core import CacheHit, Event, FinishReason, Request, Stages, TokenLogprobs, Usage
from autoglm_engine.engine.stream_pacer import AlwaysOpen, StreamGate
from autoglm_engine.errors import EngineError
from autoglm_engine.packed_body import Body
from autoglm_engine.tokenizer.incremental import TokenText

from .response_cache import tokens_at_once
from .tiers import Found, Tier

COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(slots=True, eq=False)
class SharedRequest:
    """Its answer is looked up in tiers of the cache, or else computed: the engine runs it under an id of its own,
    streamed and without a deadline. Everything it said so far is kept here as one answer; subscribers are told of it
    from wherever they stopped, always between events of the engine, so that what they get decodes on its own to whole
    characters.
    """

    id: str
    key: bytes
    request: Request  # the one that began it
    epoch: int  # of the cache when it began: a flush since then keeps its answer out
    tiers: tuple[Tier, ...] = ()  # that are asked for its answer first, and given it
    may_keep: bool = True  # False: a request had the answer computed anew meanwhile
    may_keep_found: bool = True  # False: what a tier has may be older than the answer that is kept
    is_computed: bool = False  # the engine has it; until then its answer is looked up
    found: Found | None = None
    embed_ms: float = 0.0  # of its question, for the semantic tier; a part of the time in the queue
    subscribers: list[Subscriber] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    latest: Event | None = None
    num_told: int = 0  # tokens before `latest`
    ends: list[int] = field(default_factory=list)  # numbers of tokens that decode on their own, one more piece each
    is_heartbeat: bool = False  # `latest` came in this step and said nothing

    @property
    def join_key(self) -> tuple[bytes, tuple[Tier, ...]]:
        return self.key, self.tiers

    @property
    def num_values(self) -> int:
        """As `response_cache.num_values`, of what it said so far."""
        each = 2 + 2 * len(self.logprobs[0].top) if self.logprobs else 0
        return len(self.token_ids) + each * len(self.logprobs)

    @property
    def num_tokens(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def is_complete(self) -> bool:
        """All of the answer is here."""
        return self.latest is not None and self.latest.finish_reason in COMPLETE and self.latest.error is None

    def take(self, event: Event) -> None:
        self.num_told = len(self.token_ids)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        if event.body is not None:
            self.ends = list(accumulate(piece.num_tokens for piece in event.body.pieces))
        elif event.token_ids:
            self.ends.append(len(self.token_ids))
        self.latest = event
        self.is_heartbeat = not event.token_ids and not event.is_last

    def next_end(self, cursor: int) -> int:
        """Where a piece of about `MAX_AT_ONCE` values ends that begins with the token `cursor`."""
        if cursor >= self.num_tokens:
            return cursor
        first = bisect_right(self.ends, cursor)
        if self.found and self.found.answer.body:
            return self.ends[first]
        at_once = tokens_at_once(self.num_values / self.num_tokens)
        return self.ends[max(first, bisect_right(self.ends, cursor + at_once) - 1)]

    def body(self, start: int, end: int) -> Body | None:
        """What was found packed, of these tokens: all, or those of the piece that begins there."""
        found = self.found.answer.body if self.found else None
        if found is None or start == end:
            return None
        return found if (start, end) == (0, self.num_tokens) else found.only(bisect_right(self.ends, start))

    def text_bytes(self, start: int, text: TokenText) -> int | None:
        """As `Event.text_bytes`, of the tokens from `start` on."""
        if self.latest is None or self.latest.text_bytes is None:
            return None
        before = text.decode(self.token_ids[start : self.num_told], start == 0) if start < self.num_told else ""
        return len(before.encode()) + self.latest.text_bytes

    def whole(self, text: TokenText) -> Event:
        """The answer as one event; after the last one was taken."""
        assert self.latest is not None and self.latest.is_last, f"{self.id} has not ended"
        return replace(
            self.latest,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            text_bytes=self.text_bytes(0, text),
            is_first=bool(self.token_ids),
        )


@dataclass(slots=True, eq=False)
class Subscriber:
    """A request that reads a shared one. `cursor`: how many of its tokens it was sent."""

    request: Request
    shared: SharedRequest
    hit: CacheHit
    joined_at: float
    cursor: int = 0
    leaves: FinishReason | None = None  # the shared request was asked to end for it, as its last subscriber
    first_token_at: float | None = None
    failure: EngineError | None = None  # its own, of what it should have been told
    last_event_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_event_at = self.joined_at

    @property
    def wants_news(self) -> bool:
        """It streams, and there are tokens that it was not sent."""
        return self.request.stream and self.cursor < self.shared.num_tokens

    @property
    def is_behind(self) -> bool:
        """It streams, and one piece is not enough to send it the rest."""
        return self.request.stream and self.shared.next_end(self.cursor) < self.shared.num_tokens

    def is_due_a_heartbeat(self, now: float) -> bool:
        if self.request.heartbeat_ms is None:  # those of the computation, where it streams
            return self.request.stream and self.shared.is_heartbeat
        return now - self.last_event_at >= self.request.heartbeat_ms / 1e3

    def heartbeat(self, now: float) -> Event:
        self.last_event_at = now
        usage = self.shared.latest.usage if self.shared.latest else Usage(len(self.request.prompt_ids), 0, 0)
        return Event(self.request.id, (), usage, self._stages(now))

    def event(self, now: float, text: TokenText, finish_reason: FinishReason | None = None) -> Event:
        """What it was not sent yet, or the next piece where it streams. `finish_reason`: it leaves before the shared
        request ends."""
        shared, start = self.shared, self.cursor
        self.cursor, self.last_event_at = shared.next_end(start) if self.request.stream else shared.num_tokens, now
        end, is_rest, latest = self.cursor, self.cursor == shared.num_tokens, shared.latest
        if self.first_token_at is None and self.cursor:
            self.first_token_at = now
        found = shared.found
        event = Event(
            request_id=self.request.id,
            token_ids=tuple(shared.token_ids[start:end]),
            usage=latest.usage if latest else Usage(len(self.request.prompt_ids), 0, 0),
            stages=self._stages(now),
            finish_reason=finish_reason,
            text_bytes=shared.text_bytes(start, text) if is_rest else None,
            is_first=start == 0 and self.cursor > 0,
            logprobs=tuple(shared.logprobs[start:end]),
            cache_hit=found.hit if found else self.hit,
            body=shared.body(start, end),
            cache_age_ms=found.age * 1e3 if found else 0.0,
        )
        if finish_reason is not None or not is_rest:  # what is held back, as a stop string's beginning, is never sent
            event = replace(event, usage=replace(event.usage, completion_tokens=end))
        if finish_reason is not None or latest is None or not latest.is_last or (not is_rest and shared.is_complete):
            return event
        reason = self.leaves if self.leaves and latest.finish_reason is FinishReason.CANCELLED else latest.finish_reason
        return replace(event, finish_reason=reason, error=latest.error, error_code=latest.error_code)

    def _stages(self, now: float) -> Stages:
        """Of the request that began the shared one, the engine's own. Others wait until they are told something."""
        if self.hit is CacheHit.NONE and self.shared.is_computed and self.shared.latest is not None:
            stages, embed_ms = self.shared.latest.stages, self.shared.embed_ms
            return replace(stages, queue_ms=max(0.0, stages.queue_ms - embed_ms), embed_ms=embed_ms)
        first = now if self.first_token_at is None else self.first_token_at
        waited = waited_ms(self.request, self.joined_at, first)
        embed_ms = min(waited, self.shared.embed_ms)
        return Stages(waited - embed_ms, self.request.tokenize_ms, 0.0, (now - first) * 1e3, embed_ms)


class SharedRequestGate:
    """The engine's gate: a shared request may send when one of its subscribers can be sent something. One that has a
    single subscriber, who wants the answer whole, keeps silent until the end."""

    def __init__(self, inner: StreamGate | None = None) -> None:
        self._inner = inner or AlwaysOpen()
        self.requests: dict[str, SharedRequest] = {}  # by the engine's id

    def may_send(self, request_id: str, now: float) -> bool:
        shared = self.requests.get(request_id)
        return self.may_read(request_id, now) if shared is None else self._may_send(shared, now)

    def may_read(self, request_id: str, now: float) -> bool:
        """Whether a subscriber can be sent something; by the id of its own request."""
        return self._inner.may_send(request_id, now)

    def _may_send(self, shared: SharedRequest, now: float) -> bool:
        subscribers = list(shared.subscribers)
        if len(subscribers) > 1 and not all(subscriber.request.stream for subscriber in subscribers):
            return True
        return any(
            subscriber.request.stream and self.may_read(subscriber.request.id, now) for subscriber in subscribers
        )


def waited_ms(request: Request, since: float, until: float) -> float:
    """From arrival (`since`, where it is not known) to `until`, without the time to tokenize."""
    return max(0.0, (until - (request.arrival or since)) * 1e3 - request.tokenize_ms)
