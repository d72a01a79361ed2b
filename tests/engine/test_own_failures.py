"""What one request's sampler, draft, guide or text raises ends that request, and neither its batch nor the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import Event, FinishReason, Request
from autoglm_engine.engine.sequence import Sequence as Running
from autoglm_engine.engine.speculation.prompt_lookup import PromptLookup
from autoglm_engine.errors import EngineError
from autoglm_engine.runners.base import Limits
from autoglm_engine.sampling.penalties import Penalties
from autoglm_engine.sampling.sampler import TokenSampler
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.output import Output
from autoglm_engine.tokenizer.stop_strings import StopMatcher

from tests.cache.test_sharing import shared_bench, submit
from tests.cache.test_tiers import FakeTier, settle
from tests.support.engine.engine_bench import NUM_CANDIDATES, VOCAB, Bench
from tests.support.engine.fakes import answers, expected_greedy, request

MARK = 13  # the seed of the request that breaks, and its first token
GOOD = [[1, 2], [3], [4, 5, 6]]


class Broken(RuntimeError):
    pass


class Panic(BaseException):
    """As a library in Rust raises."""


@dataclass
class BrokenGuide:
    """Follows an answer until `method` is called for the `after`-th time."""

    method: str
    error: type[BaseException] = Broken
    after: int = 1
    is_ready = True
    failure = None

    def start(self) -> None: ...

    def begin(self) -> BrokenGuide:
        self._check("begin")
        return self

    def allows(self, token_id: int) -> bool:
        self._check("allows")
        return True

    def allowed(self) -> npt.NDArray[np.bool_]:
        self._check("allowed")
        return np.ones(VOCAB, np.bool_)

    def count(self, token_id: int) -> None:
        self._check("count")

    def forced(self) -> list[int]:
        self._check("forced")
        return []

    def _check(self, method: str) -> None:
        if method == self.method:
            self.after -= 1
            if self.after <= 0:
                raise self.error(method)


def breaks(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, is_marked: Callable[[Any], bool]) -> None:
    original = getattr(owner, name)

    def method(self: Any, *args: Any, **options: Any) -> Any:
        if is_marked(self):
            raise Broken(name)
        return original(self, *args, **options)

    monkeypatch.setattr(owner, name, method)


def guided(guide: BrokenGuide, **options: object) -> Request:
    return replace(request("bad", [MARK, 1], guided_regex="x", **options), guide=guide)  # type: ignore[arg-type]


def check_only_it_ended(bench: Bench, bad: Request) -> Event:
    """`bad` in company, then a request that comes after it."""
    company = [request(f"good{i}", prompt, ignore_eos=True, stream=i == 0) for i, prompt in enumerate(GOOD)]
    bench.run(*company[:1], bad, *company[1:])
    bench.run(request("after", [7], ignore_eos=True))
    found = answers(bench.events)
    for i, prompt in enumerate([*GOOD, [7]]):
        answer = found[f"good{i}" if i < len(GOOD) else "after"]
        assert answer.token_ids == expected_greedy(prompt, 8, VOCAB)
        assert answer.last.finish_reason is FinishReason.LENGTH
    assert sum(event.is_last for event in bench.events) == len(GOOD) + 2
    bench.assert_idle()
    return found["bad"].last


def sampler_is_marked(sampler: TokenSampler) -> bool:
    return sampler._options.seed == MARK


@pytest.mark.parametrize("num_candidates", NUM_CANDIDATES)
@pytest.mark.parametrize(
    ("owner", "name", "is_marked"),
    [
        (TokenSampler, "sample", sampler_is_marked),
        (TokenSampler, "count", sampler_is_marked),
        (Penalties, "__init__", lambda made: True),
        (Output, "push", lambda output: bool(output._matcher)),
        (StopMatcher, "push", lambda matcher: True),
        (Running, "event", lambda sequence: sequence.request.id == "bad"),
        (Running, "tell", lambda sequence: sequence.request.id == "bad"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_a_request_raises_in_a_step_ends_it_alone(
    monkeypatch: pytest.MonkeyPatch,
    num_candidates: int,
    owner: type,
    name: str,
    is_marked: Callable[[Any], bool],
    stream: bool,
) -> None:
    bench = Bench(num_candidates)
    if name == "sample" and num_candidates:
        name = "sample_candidates"
    if owner is Penalties:
        original = Penalties.__init__

        def begin(self: Penalties, options: Any, *args: Any) -> None:
            if options.seed == MARK:
                raise Broken(name)
            original(self, options, *args)

        monkeypatch.setattr(Penalties, "__init__", begin)
    else:
        breaks(monkeypatch, owner, name, is_marked)
    bad = request("bad", [MARK, 1], seed=MARK, temperature=0.8, stop=("aa", "bb"), logprobs=1, stream=stream)
    last = check_only_it_ended(bench, bad)
    assert (last.error, last.error_code) == ("the engine failed on this request: Broken", "INTERNAL")


def test_what_a_device_cannot_be_told_of_ends_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, TokenSampler, "take_adjustments", sampler_is_marked)
    last = check_only_it_ended(Bench(8), request("bad", [MARK, 1], seed=MARK))
    assert last.error == "the engine failed on this request: Broken"


@pytest.mark.parametrize("error", [Broken, Panic])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("begin", {}),
        ("allows", {}),
        ("allowed", {"temperature": 0.8, "seed": 1}),
        ("count", {}),
        ("forced", {}),
    ],
)
def test_a_guide_that_raises_ends_its_own_request_alone(
    method: str, options: dict[str, Any], after: int, error: type[BaseException]
) -> None:
    limits = Limits(4, 64, 8, VOCAB, max_logits_per_span=4)
    bench = Bench(0, limits, plain_settings(speculation="on"))
    bad = guided(
        BrokenGuide(method, error, 1 if method == "begin" else after), max_tokens=20, ignore_eos=True, **options
    )
    last = check_only_it_ended(bench, bad)
    assert (last.error, last.error_code) == (f"the engine failed on this request: {error.__name__}", "INTERNAL")


@pytest.mark.parametrize("place", ["first", "drafted"])
def test_a_draft_that_raises_ends_its_own_request_alone(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    limits = Limits(4, 64, 8, VOCAB, max_logits_per_span=4)
    bench = Bench(0, limits, plain_settings(speculation="on"))
    if place == "first":
        breaks(monkeypatch, PromptLookup, "draft", lambda lookup: lookup._tokens[0] == MARK)
        bad = request("bad", [MARK, 1] * 5)
    else:
        original = TokenSampler.sample

        def sample(self: TokenSampler, logits: Any) -> Any:
            if self._options.seed == MARK and self._num_generated == 5:
                raise Broken("sample")
            return original(self, logits)

        monkeypatch.setattr(TokenSampler, "sample", sample)
        bad = request("bad", [MARK, 1] * 5, seed=MARK, ignore_eos=True, logprobs=1, max_tokens=30)
    last = check_only_it_ended(bench, bad)
    assert last.error == "the engine failed on this request: Broken"


def test_the_slot_of_one_who_could_not_be_admitted_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prefix was copied there; and what lay there before was carried over, as planned."""
    bench = Bench(0, Limits(3, 64, 8, VOCAB))
    shared = [20 + i for i in range(30)]
    bench.run(request("teaches", shared, max_tokens=2), request("other", [9] * 25, max_tokens=2))
    breaks(monkeypatch, Output, "__init__", lambda output: True)
    bench.run(request("bad", [*shared[:20], 1, 2, 3]))
    monkeypatch.undo()
    slots = bench.engine._scheduler.slots
    for slot, length in enumerate(slots.length.tolist()):
        np.testing.assert_array_equal(bench.runner.written[slot, :length], slots.tokens[slot, :length])
    bench.run(request("after", [*shared[:20], 1, 2, 3], max_tokens=4), request("again", [9] * 25, max_tokens=2))
    assert answers(bench.events)["after"].token_ids == expected_greedy([*shared[:20], 1, 2, 3], 4, VOCAB)
    assert answers(bench.events)["bad"].last.error_code == "INTERNAL"
    bench.assert_idle()


def test_an_admission_policy_that_trips_lets_the_oldest_go_first() -> None:
    bench = Bench(0)

    class Trips:
        def choose(self, queue: object, running: Sequence[object], now: float) -> int:
            raise Broken("policy")

    bench.engine._scheduler._policy = Trips()  # type: ignore[assignment]
    bench.run(*(request(f"r{i}", [i]) for i in range(6)))
    assert all(answer.last.error is None for answer in answers(bench.events).values())
    assert len(answers(bench.events)) == 6


# ---- behind the cache


def text_that_breaks(bench: Bench) -> Any:
    """For the shared engine alone, and for whom a stop string ended."""

    class Text:
        def decode(self, token_ids: Sequence[int], is_first: bool) -> str:
            raise Broken("decode")

    bench.engine._text = bench.engine._fan_out._text = Text()  # type: ignore[attr-defined]


def test_a_reader_whose_piece_cannot_be_made_ends_alone() -> None:
    bench = shared_bench()
    submit(
        bench,
        request("late", stop=("a", "b", "c", "d", "e"), ignore_eos=True, max_tokens=60, stream=True),
        request("joins", stop=("a", "b", "c", "d", "e"), ignore_eos=True, max_tokens=60),
        request("good", [4], ignore_eos=True),
    )
    text_that_breaks(bench)
    bench.drain()
    found = answers(bench.events)
    assert found["good"].token_ids == expected_greedy([4], 8, VOCAB)
    assert [event.is_last for event in found["late"].events].count(True) == 1
    assert found["joins"].last.error == "the engine failed on this request: Broken"
    bench.assert_idle()


def test_a_tier_that_cannot_keep_costs_nobody_an_answer() -> None:
    class Full(FakeTier):
        def keep(self, key: bytes, request: Request, answer: Event) -> None:
            raise Broken("keep")

    bench = shared_bench(tiers=(Full(),))
    submit(bench, request("r", ignore_eos=True))
    settle(bench)
    bench.drain()
    assert answers(bench.events)["r"].token_ids == expected_greedy([1, 2, 3], 8, VOCAB)


def test_a_failure_of_the_engine_itself_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def push(self: Output, token_id: int) -> bool:
        raise EngineError("a sentence for the caller")

    monkeypatch.setattr(Output, "push", push)
    bench = Bench(0)
    bench.run(request("r"))
    assert bench.events[-1].error == "a sentence for the caller"
