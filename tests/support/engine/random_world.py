"""Random callers of a whole engine, and what each of them should have been answered.

A world is an engine behind its cache, with settings, a model and company drawn from a seed: greedy and drawn answers,
drafts, guides that are ready late or never, images that take their time or cannot be read, stop strings,
log-probabilities, tenants, equal requests, cancels, deadlines, flushes, readers that fall behind, tiers that hold or
break, steps that fail, requests whose own sampler or text fails. Every answer is compared with that of the same request
computed alone, without drafts, cache and company.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, ImageSpan, Request, SamplingOptions, StepBatch
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.errors import EngineError, InvalidRequest, NotCached, QueueFull
from autoglm_engine.guided.grammar import Grammar, GuideCompiler, GuideState
from autoglm_engine.metrics import DRAFTS_ACCEPTED
from autoglm_engine.runners.base import Limits
from autoglm_engine.sampling.sampler import TokenSampler
from autoglm_engine.tokenizer.stop_strings import StopMatcher
from llguidance import LLTokenizer

from tests.cache.test_sharing import shared_bench
from tests.cache.test_tiers import FakeTier
from tests.engine.test_speculation import Model, repeating
from tests.support.engine.engine_bench import END, LETTERS, TEXT, VOCAB, Bench, check_same_logprobs
from tests.support.engine.fakes import EMPTY, Answer, FakeClock, answers
from tests.support.engine.images import BROKEN, FakeVision, Picture, with_images

LENGTH = 64
EOS = (END, 3, 40)
POISON = 61  # a prompt that begins so gets logits that are no numbers, after some tokens
BREAKS = 1300  # seeds from here on: the sampler raises at the token that is left
BOOM = "boom"  # a stop string whose matcher raises
REGEXES = ("[a-f]{2,7}", "(cat|dog|bird) [0-4]{1,3}", "x{6}y?", "[A-Z]+")
FILES = (b"cat", b"dog", b"cow", BROKEN)
GRIDS = ((1, 1), (2, 3), (3, 2), (1, 6), (4, 4))
Key = tuple[tuple[int, ...], SamplingOptions, tuple[ImageSpan, ...]]


class Broken(RuntimeError):
    pass


@cache
def guides() -> GuideCompiler:
    return GuideCompiler(lambda: LLTokenizer(LETTERS.to_str(), n_vocab=VOCAB, eos_token=list(EOS)), VOCAB, EOS)


@dataclass(eq=False)
class LateGuide:
    """Ready, or failed, when the clock says so."""

    inner: Grammar
    clock: FakeClock
    ready_at: float
    fails: bool

    @property
    def is_ready(self) -> bool:
        return not self.fails and self.clock.now >= self.ready_at

    @property
    def failure(self) -> EngineError | None:
        return InvalidRequest("it cannot be compiled") if self.fails and self.clock.now >= self.ready_at else None

    def start(self) -> None:
        pass

    def begin(self) -> GuideState:
        assert self.is_ready, "a guide begins before it is ready"
        return self.inner.begin()


@dataclass
class RandomGate:
    draw: random.Random
    opens: float

    def may_send(self, request_id: str, now: float) -> bool:
        return self.draw.random() < self.opens


@dataclass
class Caller:
    request: Request
    came_at: int  # step
    files: tuple[bytes, ...] = ()  # of its images
    cancelled: bool = False
    refused: str = ""  # at the door
    ended_at: int = -1


@dataclass
class World:
    """`run` as many requests; `ends` counts what became of them."""

    seed: int
    ends: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        draw = self.draw = random.Random(self.seed)
        self.num_steps = 0
        self.failed_steps: list[int] = []
        self.callers: dict[str, Caller] = {}
        self.expected: dict[Key, Answer] = {}
        self.model = poisoned(repeating(draw.randint(1, 3), draw.choice([3, 10, 1000])))
        num_candidates = draw.choice([0, 0, 8])
        self.tier = FakeTier(max_seconds=draw.choice([0.2, 1e9])) if draw.random() < 0.6 else None
        self.vision = FakeVision() if draw.random() < 0.5 else None
        self.bench = shared_bench(
            num_candidates,
            vision=self.vision,
            inner=RandomGate(random.Random(self.seed + 1), draw.choice([0.3, 1.0])),
            num_slots=draw.randint(1, 6),
            tiers=(self.tier,) if self.tier else (),
            cache_mode=draw.choice(["exact", "exact", "off"]),
            cache_ttl_seconds=draw.choice([0.3, 300.0]),
            cache_bytes=draw.choice([3000, 1 << 20]),
            max_queue=draw.choice([5, 100, 100]),
            token_budget=draw.randint(1, 60),
            prefix_reuse=draw.random() < 0.8,
            heartbeat_ms=draw.choice([30.0, 300.0]),
            max_events_per_second=draw.choice([0.0, 0.0, 60.0]),
            admission=draw.choice(["fifo", "features"]),
            speculation="off" if num_candidates else draw.choice(["off", "auto", "on"]),
            logits_per_span=1 if num_candidates else 5,
        )
        self.can_draft = not num_candidates
        if self.bench.images:
            self.bench.images.ids._half = draw.choice([100, 1 << 30])
        self.bench.runner.model = self.model
        self.bench.runner.before_issue = self.bench.runner.before_forward = self._maybe_fail

    @property
    def engine(self) -> CachingEngine:
        engine: Any = self.bench.engine
        assert isinstance(engine, CachingEngine)
        return engine

    # ---- what happens

    def run(self, num_requests: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            break_some(patch)
            while len(self.callers) < num_requests:
                for _ in range(min(self.draw.choice([0, 0, 1, 1, 3]), num_requests - len(self.callers))):
                    self._arrive()
                self._disturb()
                self._step()
            if self.vision:
                self.vision.free.set()
            if self.draw.random() < 0.1:
                self._take(self.engine.shut_down())
            else:
                self._drain()
                self._check_slots()
            self.engine.close()
            self.bench.assert_idle()
            self._check_all()

    def _arrive(self) -> None:
        name = f"r{len(self.callers)}"
        made = random_request(self.draw, name, self.bench.clock, can_draft=self.can_draft)
        files: tuple[bytes, ...] = ()
        if self.vision and self.draw.random() < 0.5:
            made, files = with_random_images(self.draw, made)
        if self.callers and self.draw.random() < 0.3:  # as somebody asked before
            before = self.draw.choice(list(self.callers.values())[-20:])
            other, files = before.request, before.files
            tenant = other.tenant if self.draw.random() < 0.8 else made.tenant
            made = replace(made, prompt_ids=other.prompt_ids, images=other.images, sampling=other.sampling)
            made = replace(made, tenant=tenant)
        made = replace(made, guide=self._guide(made.sampling), image_bytes=HeldImages(files) if files else None)
        caller = self.callers[name] = Caller(made, self.num_steps, files)
        try:
            self._take(self.engine.submit(made))
        except (NotCached, QueueFull) as refusal:
            caller.refused = type(refusal).__name__

    def _guide(self, sampling: SamplingOptions) -> Grammar | LateGuide | None:
        guide = guides().compile(sampling)
        if guide is None or self.draw.random() < 0.5:
            return guide
        ready_at = self.bench.clock.now + self.draw.choice([0.0, 0.03, 0.2])
        return LateGuide(guide, self.bench.clock, ready_at, fails=self.draw.random() < 0.15)

    def _disturb(self) -> None:
        draw, waiting = self.draw, [name for name, caller in self.callers.items() if self._is_open(caller)]
        if waiting and draw.random() < 0.06:
            leaves = draw.choice(waiting)
            self.callers[leaves].cancelled = True
            self.engine.cancel([leaves, "nobody"])
        if draw.random() < 0.01:
            self.engine.flush()
        if self.tier and draw.random() < 0.1:
            draw.choice([self.tier.free.set, self.tier.free.set, self.tier.free.clear])()
            self.tier.breaks = draw.random() < 0.2
        if self.vision and draw.random() < 0.2:
            draw.choice([self.vision.free.set, self.vision.free.set, self.vision.free.clear])()
        if draw.random() < 0.1:
            self.bench.clock.now += draw.choice([0.01, 0.3])

    def _is_open(self, caller: Caller) -> bool:
        return not caller.refused and caller.ended_at < 0

    def _maybe_fail(self, batch: StepBatch) -> None:
        if self.draw.random() < 0.002:
            self.failed_steps.append(self.num_steps)
            self.bench.runner.written[[span.slot for span in batch.spans]] = EMPTY
            raise Broken("of the runner")

    def _step(self) -> None:
        self.num_steps += 1
        if self.draw.random() < 0.7:
            self.bench.encode()
        self._take(self.engine.step())
        if self.num_steps % 16 == 0:
            self._check_slots()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            caller = self.callers[event.request_id]
            assert self._is_open(caller), f"seed {self.seed}: {event.request_id} hears more after its end"
            if event.is_last:
                caller.ended_at = self.num_steps
        self.bench.events += events

    def _drain(self) -> None:
        if self.tier:
            self.tier.free.set()
        for _ in range(100_000):
            if not (self.engine.has_work or self.engine._lookups._pending):
                return
            self.bench.clock.now += 0.001
            self.bench.encode()
            self._step()
        pytest.fail(f"seed {self.seed}: the engine never became idle")

    # ---- what is right

    def _check_slots(self) -> None:
        """What the slot table counts on is what the runner has written."""
        slots = self.engine._engine._scheduler.slots
        for slot, length in enumerate(slots.length.tolist()):
            assert np.array_equal(self.bench.runner.written[slot, :length], slots.tokens[slot, :length])

    def _check_all(self) -> None:
        found = answers(self.bench.events)
        for name, caller in self.callers.items():
            if caller.refused:
                self.ends[caller.refused] += 1
                assert name not in found, f"seed {self.seed}: {name} was refused and answered"
                continue
            assert name in found and caller.ended_at >= 0, f"seed {self.seed}: {name} has no answer"
            try:
                self._check(found[name], caller)
            except AssertionError as error:
                raise AssertionError(f"seed {self.seed}: {name}: {caller.request}") from error
        self.ends["drafts accepted"] += int(self.bench.metrics.value(DRAFTS_ACCEPTED))
        self.ends["requests"] += len(self.callers)
        self.ends["steps"] += self.num_steps

    def _check(self, answer: Answer, caller: Caller) -> None:
        request, last = caller.request, answer.last
        assert [event.is_last for event in answer.events] == [False] * (len(answer.events) - 1) + [True]
        assert request.stream or len(answer.events) == 1
        if last.cache_hit is not CacheHit.NONE:
            self.ends[last.cache_hit.value] += 1
            assert any(other is not caller and same_question(other.request, request) for other in self.callers.values())
        if last.error is None:
            assert last.usage.completion_tokens == len(answer.token_ids)
        expected = self._alone(request, caller.files)
        if (reason := self._early_end(last, caller)) is not None:
            self.ends[reason] += 1
            # One that fails alone does not tell its last tokens: there is nothing to compare those with.
            told = answer.token_ids if expected.last.error is None else answer.token_ids[: len(expected.token_ids)]
            assert told == expected.token_ids[: len(told)]
            if last.error is None:
                assert TEXT.decode(answer.token_ids, True).startswith(answer.text(TEXT))
            return
        self.ends["guided" if request.guide else "seeded" if request.sampling.temperature else "greedy"] += 1
        assert (last.finish_reason, last.error, last.error_code) == (
            expected.last.finish_reason,
            expected.last.error,
            expected.last.error_code,
        )
        if last.error is not None:
            self.ends["own failure" if "Broken" in last.error else "own error"] += 1
            assert answer.token_ids == expected.token_ids[: len(answer.token_ids)] or not request.stream
            return
        assert answer.token_ids == expected.token_ids
        assert answer.text(TEXT) == expected.text(TEXT)
        logprobs = [[entry for event in one.events for entry in event.logprobs] for one in (answer, expected)]
        check_same_logprobs(*logprobs)

    def _early_end(self, last: Event, caller: Caller) -> str | None:
        """Why it need not have the whole answer; None where it must."""
        request = caller.request
        if last.finish_reason is FinishReason.CANCELLED:
            assert caller.cancelled
            return "cancelled"
        if last.finish_reason is FinishReason.DEADLINE:
            assert request.deadline is not None
            return "deadline"
        if last.error == "the model runner failed: of the runner":
            assert any(caller.came_at <= step <= caller.ended_at for step in self.failed_steps)
            return "failed step"
        if last.error == "the server is shutting down":
            return "shut down"
        if last.error_code == "NOT_FOUND":
            assert request.cache is CacheUse.ONLY
            return "NotCached"
        if last.error is not None and "requests wait already" in last.error:
            return "QueueFull"
        if last.error == "it cannot be compiled":
            assert request.guide is not None
            return "guide failed"
        if last.error is not None and "all ids of image tokens were given" in last.error:
            assert request.images
            return "no ids"
        if last.error == "the image cannot be decoded":
            assert BROKEN in caller.files
            return "image failed"
        return None

    def _alone(self, request: Request, files: tuple[bytes, ...]) -> Answer:
        """The whole answer, or the failure that is the request's own."""
        key = tuple(request.prompt_ids.tolist()), request.sampling, request.images
        if key not in self.expected:
            alone = Bench(0, Limits(1, LENGTH, LENGTH, VOCAB), eos=EOS, vision=FakeVision())
            alone.runner.model = self.model
            made = Request("alone", request.prompt_ids, request.sampling, stream=True, guide=guides().compile(key[1]))
            alone.run(replace(made, images=request.images, image_bytes=HeldImages(files) if files else None))
            self.expected[key] = answers(alone.events)["alone"]
        return self.expected[key]


def same_question(one: Request, other: Request) -> bool:
    """Which an answer may be shared by."""
    if (one.tenant, one.sampling, one.images) != (other.tenant, other.sampling, other.images):
        return False
    return one.prompt_ids.tolist() == other.prompt_ids.tolist()


def poisoned(model: Model) -> Model:
    def poison(tokens: np.ndarray[Any, np.dtype[np.int64]], vocab_size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        if tokens[0] == POISON and len(tokens) % 9 == 0:
            return np.full(vocab_size, np.nan, np.float32)
        return model(tokens, vocab_size)

    return poison


def break_some(patch: pytest.MonkeyPatch) -> None:
    """Samplers with a seed from BREAKS on, and stop strings that are BOOM."""
    sample: Callable[..., Any] = TokenSampler.sample
    sample_candidates: Callable[..., Any] = TokenSampler.sample_candidates
    wants_plain_draw: Callable[[TokenSampler], bool] = TokenSampler.wants_plain_draw.fget  # type: ignore[assignment]
    push: Callable[..., Any] = StopMatcher.push

    def may_break(sampler: TokenSampler) -> bool:
        return (sampler._options.seed or 0) >= BREAKS

    def check(sampler: TokenSampler) -> None:
        if may_break(sampler) and sampler._num_generated >= sampler._options.seed - BREAKS:  # type: ignore[operator]
            raise Broken("a sampler")

    def broken_sample(self: TokenSampler, *args: Any) -> Any:
        check(self)
        return sample(self, *args)

    def broken_candidates(self: TokenSampler, *args: Any) -> Any:
        check(self)
        return sample_candidates(self, *args)

    def broken_push(self: StopMatcher, *args: Any) -> Any:
        self.num_pushed = getattr(self, "num_pushed", 0) + 1  # type: ignore[attr-defined]
        if BOOM in self._stops and self.num_pushed > 3:  # type: ignore[attr-defined]
            raise Broken("a matcher")
        return push(self, *args)

    # Many plain draws are made at once, by nobody's sampler: one that breaks is asked.
    plain = property(lambda sampler: wants_plain_draw(sampler) and not may_break(sampler))
    patch.setattr(TokenSampler, "wants_plain_draw", plain)
    patch.setattr(TokenSampler, "sample", broken_sample)
    patch.setattr(TokenSampler, "sample_candidates", broken_candidates)
    patch.setattr(StopMatcher, "push", broken_push)


def random_request(draw: random.Random, name: str, clock: FakeClock, *, can_draft: bool) -> Request:
    prompt = [(draw.randint(0, 2) * 7 + i % 9) % 60 for i in range(draw.choice([0, 5, 20, 40]))]
    prompt += [draw.randint(0, VOCAB - 2) for _ in range(draw.randint(1, 6))]
    if draw.random() < 0.03:
        prompt[0] = POISON
    return Request(
        name,
        np.array(prompt, np.int32),
        random_sampling(draw),
        stream=draw.random() < 0.5,
        arrival=clock.now,
        deadline=clock.now + draw.choice([0.005, 0.05, 0.2, 5.0]) if draw.random() < 0.15 else None,
        cache=draw.choices(list(CacheUse), [12, 2, 1, 1])[0],
        tenant=draw.choice(["", "", "a", "b"]),
        user=draw.choice(["", "x", "y"]),
        priority=draw.choice([5, 5, 5, 1, 9]),
        prompt_lookup=draw.choice([None, None, 0, 3]) if can_draft else None,
    )


def with_random_images(draw: random.Random, request: Request) -> tuple[Request, tuple[bytes, ...]]:
    """Its prompt with one or two images somewhere, and their files."""
    parts: list[int | Picture] = request.prompt_ids.tolist()
    for _ in range(draw.choice([1, 1, 2])):
        file = draw.choices(FILES, [8, 8, 8, 1])[0]
        parts = parts[:30]
        parts.insert(draw.randint(0, len(parts)), Picture(file, draw.choice(GRIDS)))
    made = with_images(request, *parts)
    return made, tuple(part.file for part in parts if isinstance(part, Picture))


def random_sampling(draw: random.Random) -> SamplingOptions:
    max_tokens = draw.randint(1, 24)
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if draw.random() < 0.4:
        options |= {"temperature": draw.choice([0.5, 1.3]), "seed": draw.randint(0, 3)}
        options |= draw.choice([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.5}])
        if draw.random() < 0.1:
            options["seed"] = BREAKS + draw.randint(0, 9)
    options |= draw.choice(
        [{}, {}, {}, {"repetition_penalty": 1.2}, {"frequency_penalty": 0.4}, {"presence_penalty": 1.0}]
    )
    options |= draw.choice([{}, {}, {}, {"logit_bias": ((7, 4.0), (9, -100.0))}, {"bad_words": ((7, 8), (9,))}])
    options |= draw.choice([{}, {}, {"logprobs": draw.randint(1, 3)}])
    if draw.random() < 0.2:
        return SamplingOptions(**options, guided_regex=draw.choice(REGEXES))
    options |= draw.choice([{}, {}, {"ignore_eos": True}, {"min_tokens": draw.randint(0, max_tokens)}])
    options |= draw.choice([{}, {}, {"stop": ("a",)}, {"stop": ("bc", "Z", "Z")}, {"stop": ("Q", "qu", "e0")}])
    if draw.random() < 0.03:
        options["stop"] = ("mnopq", BOOM)
    return SamplingOptions(**options)
