"""An engine over a fake runner, for tests of the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from autoglm_engine.core import Event, Logits, Request, StepBatch, TokenLogprobs
from autoglm_engine.engine.engine import Engine
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import EngineSettings, plain_settings
from autoglm_engine.tokenizer.incremental import TokenText

from tests.support.engine.fakes import FakeClock, FakeRunner, letters_text, letters_tokenizer
from tests.support.engine.images import FakeVision
from tests.support.engine.memory_metrics import MemoryMetrics

TEXT = letters_text()
LETTERS = letters_tokenizer()
VOCAB = LETTERS.get_vocab_size()
END = LETTERS.token_to_id("<|end|>")
NUM_CANDIDATES = [0, 8]  # of the two kinds of runner
LIMITS = Limits(num_slots=4, max_length=64, prefill_chunk=8, vocab_size=VOCAB)


@dataclass
class Bench:
    """An engine, its parts, and everything it answered."""

    num_candidates: int  # of the runner; 0: it gives whole logits
    limits: Limits = LIMITS
    settings: EngineSettings = field(default_factory=plain_settings)
    gate: object = None
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)
    events: list[Event] = field(default_factory=list)
    text: TokenText = TEXT
    eos: tuple[int, ...] = (END,)
    vision: FakeVision | None = None

    def __post_init__(self) -> None:
        self.runner = FakeRunner(replace(self.limits, num_candidates=self.num_candidates), self.clock)
        self.engine = Engine(
            self.runner,
            self.text,
            self.eos,
            self.settings,
            gate=self.gate,
            metrics=self.metrics,
            vision=self.vision and self.vision.given(),
            clock=self.clock,  # type: ignore[arg-type]
        )
        self.images = self.engine._images

    def step(self, count: int = 1) -> list[Event]:
        """Each once what is encoded is, unless that is held up."""
        found = []
        for _ in range(count):
            self.encode()
            found += self.engine.step()
        self.events += found
        return found

    def encode(self) -> None:
        while self.images and self.vision and self.vision.free.is_set() and not self.images.store.encoder.is_idle:
            time.sleep(0.0005)

    def drain(self) -> None:
        for _ in range(2000):
            if not self.engine.has_work:
                return
            self.step()
        pytest.fail("the engine never became idle")

    def run(self, *requests: Request) -> None:
        for one in requests:
            self.engine.submit(one)
        self.drain()

    def assert_idle(self) -> None:
        stats = self.engine.stats
        assert (stats.running, stats.waiting, stats.slots_busy) == (0, 0, 0)
        assert stats.slots_free + stats.slots_retained == self.limits.num_slots
        if self.images and self.vision:
            self.vision.free.set()
            self.encode()
            self.images.store.settle()
            self.images.store.pool.check()
            assert self.images.store.pool.usage == 0


def spell(text: str) -> list[int]:
    return [LETTERS.token_to_id({" ": "Ġ"}.get(letter, letter)) for letter in text]


def script(bench: Bench, words: str | list[int]) -> None:
    """Make the model say `words` (then 'z' for ever), whatever the prompt is: for tests with one request."""
    ids = spell(words) if isinstance(words, str) else words
    num_prompt = 3

    def forward(batch: StepBatch) -> Logits:
        bench.runner.before_forward(batch)
        bench.runner.batches.append(batch)
        rows = np.zeros((sum(span.wants_logits for span in batch.spans), VOCAB), np.float32)
        for row, span in zip(rows, (span for span in batch.spans if span.wants_logits), strict=True):
            said = span.start + len(span.token_ids) - num_prompt
            row[ids[said] if said < len(ids) else spell("z")[0]] = 1.0
        return rows

    bench.runner.forward = forward  # type: ignore[method-assign]


def check_same_logprobs(found: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs]) -> None:
    """As near as float32 is: a device's log-sum-exp is that, and the sum over whole logits is float64."""
    for one, other in zip(found, expected, strict=True):
        assert (one.token_id, one.logprob) == (other.token_id, pytest.approx(other.logprob, abs=1e-5))
        assert [token_id for token_id, _ in one.top] == [token_id for token_id, _ in other.top]
        assert [logprob for _, logprob in one.top] == pytest.approx([logprob for _, logprob in other.top], abs=1e-5)
