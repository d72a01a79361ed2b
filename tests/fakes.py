"""Fakes for the engine's unit tests: a runner whose answers depend on what its slots truly hold, a clock, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from autoglm_engine.core import Event, Logits, Request, SamplingOptions, StepBatch
from autoglm_engine.runner import Deferred, Limits
from autoglm_engine.token_text import TokenText
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_MODULUS = 2**31 - 1
EMPTY = -1


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Logits are a hash of the tokens that are truly written at the span's positions and before, so that a mistake with
    slots, positions or copies changes the answer. Reading a position that was never written raises.
    """

    def __init__(self, limits: Limits, clock: FakeClock | None = None, seconds_per_step: float = 0.01) -> None:
        self._limits = limits
        self._clock = clock
        self._seconds_per_step = seconds_per_step
        self.written: npt.NDArray[np.int64] = np.full((limits.num_slots, limits.max_length), EMPTY)
        self.batches: list[StepBatch] = []
        self.num_copies = 0
        self.before_forward: Callable[[StepBatch], None] = lambda batch: None

    @property
    def limits(self) -> Limits:
        return self._limits

    def issue(self, batch: StepBatch) -> Deferred:
        return Deferred(self.forward, batch)

    def forward(self, batch: StepBatch) -> Logits:
        self.before_forward(batch)
        self.batches.append(batch)
        assert len({span.slot for span in batch.spans}) == len(batch.spans), "a slot appears twice"
        rows = []
        for span in batch.spans:
            end = span.start + len(span.token_ids)
            assert 1 <= len(span.token_ids) <= self._limits.prefill_chunk and end <= self._limits.max_length
            self.written[span.slot, span.start : end] = span.token_ids
            assert (self.written[span.slot, :end] != EMPTY).all(), "a position is read that was never written"
            if span.wants_logits:
                rows.append(fake_logits(self.written[span.slot, :end], self._limits.vocab_size))
        if self._clock:
            self._clock.now += self._seconds_per_step
        return np.array(rows, np.float32).reshape(len(rows), self._limits.vocab_size)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert source != target
        self.num_copies += 1
        self.written[target, length:] = EMPTY
        self.written[target, :length] = self.written[source, :length]
        assert (self.written[target, :length] != EMPTY).all(), "a position is copied that was never written"

    def close(self) -> None:
        pass


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


def letters_text() -> TokenText:
    return TokenText(letters_tokenizer())


def request(
    request_id: str = "r",
    prompt: list[int] | None = None,
    *,
    stream: bool = False,
    deadline: float | None = None,
    arrival: float = 0.0,
    **options: object,
) -> Request:
    sampling = SamplingOptions(**{"max_tokens": 8, **options})  # type: ignore[arg-type]
    ids = np.array([1, 2, 3] if prompt is None else prompt, np.int32)
    return Request(request_id, ids, sampling, stream, arrival, deadline)


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
