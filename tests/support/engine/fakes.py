"""Fakes for the engine's unit tests: a runner whose answers depend on what its slots truly hold, a clock, a
tokenizer."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Candidates, Event, Logits, Request, SamplingOptions, Span, StepBatch, TokenLogprobs
from autoglm_engine.runners.base import Limits
from autoglm_engine.sampling.sampler import Sampled
from autoglm_engine.tokenizer.incremental import TokenText
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_MODULUS = 2**31 - 1
EMPTY = -(1 << 40)  # no token id, not of an image either


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Logits are a hash of the tokens that are truly written at the span's positions and before, so that a mistake with
    slots, positions or copies changes the answer. Of a token of an image its features count, and not its id, and of all
    tokens where they are for the rotary embedding. Reading a position that was never written raises, and so does
    whatever the protocol forbids. With `limits.num_candidates`, steps give candidates, adjusted by what this slot was
    told so far.
    """

    def __init__(self, limits: Limits, clock: FakeClock | None = None, seconds_per_step: float = 0.01) -> None:
        self._limits = limits
        self._clock = clock
        self._seconds_per_step = seconds_per_step
        self._ranking = FakeRanking(limits)
        self._pending: FakePending | None = None
        self._num_issued = 0
        self.written: npt.NDArray[np.int64] = np.full((limits.num_slots, limits.max_length), EMPTY)
        self.seen = self.written.copy()  # what the model makes of them
        self.batches: list[StepBatch] = []
        self.num_copies = 0
        self.num_whole_rows = 0
        self.model: Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float32]] = fake_logits
        self.before_issue: Callable[[StepBatch], None] = lambda batch: None
        self.before_forward: Callable[[StepBatch], None] = lambda batch: None

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> FakePending:
        assert self._pending is None, "a step is issued while one is pending"
        assert batch.spans, "a step without spans is issued"
        self._num_issued += 1
        self.before_issue(batch)
        self._pending = FakePending(batch, self._finish)
        return self._pending

    def _finish(self, pending: FakePending) -> Logits | Candidates:
        assert pending is self._pending, "the result of a step is taken twice"
        self._pending = None
        self._ranking.adjust(pending.batch)
        logits = self.forward(pending.batch)
        if not self._limits.num_candidates:
            return logits
        number = self._num_issued

        def full_row(row: int) -> Logits:
            assert self._num_issued == number, "a row is fetched after the next step was issued"
            self.num_whole_rows += 1
            return logits[row].copy()

        return self._ranking.candidates(logits, [s.slot for s in pending.batch.spans if s.wants_logits], full_row)

    def forward(self, batch: StepBatch) -> Logits:
        self.before_forward(batch)
        self.batches.append(batch)
        assert len({span.slot for span in batch.spans}) == len(batch.spans), "a slot appears twice"
        rows = []
        for span in batch.spans:
            end = span.start + len(span.token_ids)
            assert 1 <= len(span.token_ids) <= self._limits.prefill_chunk and end <= self._limits.max_length
            self.written[span.slot, span.start : end] = span.token_ids
            self.seen[span.slot, span.start : end] = seen_tokens(span)
            assert (self.written[span.slot, :end] != EMPTY).all(), "a position is read that was never written"
            assert 0 <= span.num_drafts < min(len(span.token_ids), self._limits.max_logits_per_span)
            ends = range(end - span.num_logits + 1, end + 1)
            rows += [self.model(self.seen[span.slot, :last], self._limits.vocab_size) for last in ends]
        if self._clock:
            self._clock.now += self._seconds_per_step
        return np.array(rows, np.float32).reshape(len(rows), self._limits.vocab_size)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert self._pending is None, "a prefix is copied while a step is pending"
        assert source != target
        self.num_copies += 1
        self.written[target, length:] = EMPTY
        self.written[target, :length] = self.written[source, :length]
        self.seen[target] = self.seen[source]
        assert (self.written[target, :length] != EMPTY).all(), "a position is copied that was never written"

    def close(self) -> None:
        pass


class FakePending:
    """Computes when it is asked, and checks that the tokens are still those it was issued with."""

    def __init__(self, batch: StepBatch, finish: Callable[[FakePending], Logits | Candidates]) -> None:
        self.batch = batch
        self._issued = [span.token_ids.copy() for span in batch.spans]
        self._finish = finish

    def result(self) -> Logits | Candidates:
        for span, token_ids in zip(self.batch.spans, self._issued, strict=True):
            assert np.array_equal(span.token_ids, token_ids), "tokens changed while their step was in flight"
        return self._finish(self)


class FakeRanking:
    """What a device keeps of each slot to adjust and rank its logits; garbage until the slot is told to reset it."""

    def __init__(self, limits: Limits) -> None:
        self._num_candidates = limits.num_candidates
        self._factors = np.full((limits.num_slots, limits.vocab_size), 0.01, np.float32)
        self._offsets = np.full((limits.num_slots, limits.vocab_size), np.nan, np.float32)
        self._inverse_temperatures = np.full(limits.num_slots, np.nan, np.float32)

    def adjust(self, batch: StepBatch) -> None:
        for span in batch.spans:
            if (told := span.adjustments) is None:
                continue
            assert self._num_candidates and span.wants_logits, "adjustments for nothing"
            assert told.reset or len(told.token_ids), "adjustments that change nothing"
            assert len(set(told.token_ids.tolist())) == len(told.token_ids), "a token is adjusted twice"
            if told.reset:
                self._factors[span.slot], self._offsets[span.slot] = 1, 0
            self._factors[span.slot, told.token_ids] = told.factors
            self._offsets[span.slot, told.token_ids] = told.offsets
            self._inverse_temperatures[span.slot] = told.inverse_temperature

    def candidates(self, logits: Logits, slots: list[int], full_row: Callable[[int], Logits]) -> Candidates:
        factors, offsets = self._factors[slots], self._offsets[slots]
        return rank(logits, factors, offsets, self._inverse_temperatures[slots], self._num_candidates, full_row)


def rank(
    logits: Logits,
    factors: Logits,
    offsets: Logits,
    inverse_temperatures: Logits,
    count: int,
    full_row: Callable[[int], Logits],
) -> Candidates:
    """A device's candidates, in float32; of equal ones the highest id comes first, unlike on the host."""
    with np.errstate(all="ignore"):
        adjusted = np.where(logits < 0, logits * factors, logits / factors) + offsets
        scaled = adjusted * inverse_temperatures[:, None]
        largest = scaled.max(axis=1, initial=-np.inf)
        log_sum_exp = np.log(np.exp(scaled - largest[:, None]).sum(axis=1, dtype=np.float32)) + largest
    ids = np.array([np.lexsort((-np.arange(len(row)), -row))[:count] for row in adjusted], np.int32)
    ids = ids.reshape(len(logits), min(count, logits.shape[1]))
    return Candidates(ids, np.take_along_axis(adjusted, ids.astype(np.int64), axis=1), log_sum_exp, full_row)


def assert_same(found: Sequence[Sampled], expected: Sequence[Sampled]) -> None:
    """But for what `assert_same_logprobs` forgives."""
    for one, other in zip(found, expected, strict=True):
        assert (one.token_id, one.failure) == (other.token_id, other.failure)
        assert (one.logprobs is None) == (other.logprobs is None)
        assert_same_logprobs(*([each.logprobs] if each.logprobs else [] for each in (one, other)))


def assert_same_logprobs(found: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs]) -> None:
    """But for the rounding of a device's sum."""
    for one, other in zip(found, expected, strict=True):
        assert one.token_id == other.token_id
        assert [token_id for token_id, _ in one.top] == [token_id for token_id, _ in other.top]
        values, exact = ([each.logprob, *(value for _, value in each.top)] for each in (one, other))
        np.testing.assert_allclose(values, exact, atol=1e-4)


def seen_tokens(span: Span) -> npt.NDArray[np.int64]:
    """Token ids, where nothing else is said of them."""
    seen, of_image = span.token_ids.astype(np.int64), span.token_ids < 0
    features = np.empty((0, 0), np.float32) if span.features is None else span.features
    assert len(features) == of_image.sum(), "as many features as tokens of images"
    assert span.features is None or len(features), "features for nothing"
    seen[of_image] = [zlib.crc32(row.tobytes()) for row in features]
    if span.positions is not None:
        assert span.positions.dtype == np.int32 and span.positions.shape == (3, len(seen))
        moved = span.positions - np.arange(span.start, span.start + len(seen))
        seen += np.array([10_007, 100_003, 1_000_003]) @ moved
    return seen


def fake_logits(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
    """float32 `[vocab_size]` between 0 and 8, a function of every token and its place."""
    state = 17
    for token in tokens.tolist():
        state = (state * 48271 + token + 1) % _MODULUS
    mixed = (state + 1) * (np.arange(vocab_size, dtype=np.int64) + 7919) % _MODULUS * 16807 % _MODULUS
    return (mixed % 65536 / 8192).astype(np.float32)


def expected_greedy(
    prompt: list[int], num_tokens: int, vocab_size: int, eos: frozenset[int] = frozenset()
) -> list[int]:
    """What a greedy request over the FakeRunner answers, computed without an engine."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(fake_logits(np.array(tokens, np.int64), vocab_size).argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


def letters_tokenizer() -> Tokenizer:
    """64 tokens, byte level: a-z, A-Z, digits, space, and the three bytes of 'é' and '€' that tokens can split."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234ĠÃ©âĤ¬"
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Byte level, a token a byte, with `<s>` and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def letters_text() -> TokenText:
    return TokenText(letters_tokenizer())


def request(
    request_id: str = "r",
    prompt: list[int] | None = None,
    *,
    stream: bool = False,
    deadline: float | None = None,
    arrival: float = 0.0,
    user: str = "",
    heartbeat_ms: int | None = None,
    **options: object,
) -> Request:
    sampling = SamplingOptions(**{"max_tokens": 8, **options})  # type: ignore[arg-type]
    ids = np.array([1, 2, 3] if prompt is None else prompt, np.int32)
    return Request(request_id, ids, sampling, stream, arrival, deadline, user=user, heartbeat_ms=heartbeat_ms)


@dataclass
class Answer:
    """The events of one request, joined."""

    events: list[Event] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for event in self.events for token_id in event.token_ids]

    @property
    def last(self) -> Event:
        return self.events[-1]

    def text(self, token_text: TokenText) -> str:
        pieces = []
        for event in self.events:
            piece = token_text.decode(event.token_ids, event.is_first)
            pieces.append(piece if event.text_bytes is None else piece.encode()[: event.text_bytes].decode())
        return "".join(pieces)


def answers(events: list[Event]) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for event in events:
        found.setdefault(event.request_id, Answer()).events.append(event)
    return found
