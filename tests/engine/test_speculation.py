"""Drafting changes when tokens come, never which: engines with and without it over models that repeat themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from autoglm_engine.core import FinishReason, StepBatch
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.metrics import DRAFTS_ACCEPTED, TOKENS_DRAFTED
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.engine_bench import END, TEXT, VOCAB, Bench, spell
from tests.support.engine.fakes import Answer, answers, fake_logits, request

LENGTH = 160
LIMITS = Limits(4, LENGTH, 24, VOCAB, max_logits_per_span=9)
Model = Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float32]]


def repeating(order: int, surprise: int) -> Model:
    """What comes next follows from the last `order` tokens, but for about one place of `surprise`."""

    def model(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
        if int(fake_logits(tokens, 8).sum() * 8192) % surprise == 0:
            return fake_logits(tokens, vocab_size)
        return fake_logits(tokens[-order:], vocab_size)

    return model


def bench_of(model: Model, mode: str, limits: Limits = LIMITS, **others: object) -> Bench:
    bench = Bench(0, limits, plain_settings(speculation=mode, **others))  # type: ignore[arg-type]
    bench.runner.model = model
    return bench


def check_slots(bench: Bench) -> None:
    """What the slot table counts on is what the runner has written."""
    slots = bench.engine._scheduler.slots
    for slot, length in enumerate(slots.length.tolist()):
        np.testing.assert_array_equal(bench.runner.written[slot, :length], slots.tokens[slot, :length])


def run_all(bench: Bench, asked: list[Asked]) -> dict[str, Answer]:
    for now in range(60):
        for number, one in enumerate(asked):
            if one.arrives == now:
                bench.engine.submit(request(f"r{number}", one.prompt, stream=one.stream, **one.options))
        bench.engine.cancel(f"r{number}" for number, one in enumerate(asked) if one.leaves == now)
        bench.step()
        check_slots(bench)
    bench.drain()
    bench.assert_idle()
    return answers(bench.events)


@dataclass(frozen=True)
class Asked:
    arrives: int
    prompt: list[int]
    stream: bool
    options: dict[str, object]
    leaves: int | None


OPTIONS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 60)},
    optional={
        "min_tokens": st.integers(0, 1) | st.integers(2, 40),
        "stop": st.sampled_from([("a",), ("bc", "Z"), ("hello",), ("q0", "T", "m")]),
        "repetition_penalty": st.sampled_from([1.1, 0.9]),
        "frequency_penalty": st.sampled_from([0.3, -0.5]),
        "presence_penalty": st.just(0.2),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 0.0, 0.8]),
        "seed": st.just(5),
        "bad_words": st.sampled_from([((3,),), ((1, 2), (14, 15, 16))]),
    },
).map(lambda options: {"seed": 5, **options, "min_tokens": min(options.get("min_tokens", 0), options["max_tokens"])})
PROMPTS = st.builds(
    lambda family, shared, own: [(family * 7 + i % 9) % 60 for i in range(shared)] + own,
    st.integers(0, 2),
    st.integers(0, 40),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
)
ASKED = st.builds(
    Asked,
    arrives=st.integers(0, 50),
    prompt=PROMPTS,
    stream=st.booleans(),
    options=OPTIONS,
    leaves=st.none() | st.none() | st.integers(0, 58),
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(ASKED, min_size=1, max_size=10),
    st.builds(repeating, st.integers(1, 3), st.integers(3, 40)),
    st.sampled_from(["auto", "on"]),
    st.integers(1, 4),
    st.integers(1, 40),
    st.tuples(st.integers(1, 16), st.integers(1, 4), st.integers(2, 12)),
)
@pytest.mark.slow
def test_answers_are_those_without(
    asked: list[Asked], model: Model, mode: str, num_slots: int, budget: int, sizes: tuple[int, int, int]
) -> None:
    tokens, ngram, most = sizes
    limits = Limits(num_slots, LENGTH, 24, VOCAB, max_logits_per_span=most)
    plain = run_all(bench_of(model, "off", limits, token_budget=budget), asked)
    drafted = run_all(
        bench_of(model, mode, limits, token_budget=budget, speculation_tokens=tokens, speculation_ngram=ngram), asked
    )
    for number, one in enumerate(asked):
        check_same(plain[f"r{number}"], drafted[f"r{number}"], ends_early=one.leaves is not None)


def check_same(plain: Answer, drafted: Answer, *, ends_early: bool) -> None:
    """Of requests that are cancelled at one moment, one may have come further."""
    length = min(len(plain.token_ids), len(drafted.token_ids))
    assert drafted.token_ids[:length] == plain.token_ids[:length]
    assert drafted.last.usage.completion_tokens == len(drafted.token_ids)
    if ends_early and FinishReason.CANCELLED in (plain.last.finish_reason, drafted.last.finish_reason):
        return
    assert drafted.token_ids == plain.token_ids
    assert drafted.text(TEXT) == plain.text(TEXT)
    assert logprobs(drafted) == logprobs(plain)
    assert drafted.last.finish_reason is plain.last.finish_reason


def logprobs(answer: Answer) -> list[object]:
    return [entry for event in answer.events for entry in event.logprobs]


# ---- what it saves, and what it must not


def test_what_repeats_takes_fewer_steps() -> None:
    steps = {}
    for mode in ("off", "auto", "on"):
        bench = bench_of(repeating(1, 10**9), mode)
        bench.run(request(max_tokens=100, ignore_eos=True))
        steps[mode] = bench.engine.stats.steps
    assert steps["off"] == 100
    assert steps["on"] <= steps["auto"] < 60


def test_drafts_are_counted() -> None:
    bench = bench_of(repeating(1, 20), "on")
    bench.run(request(max_tokens=120, ignore_eos=True))
    stats = bench.engine.stats
    assert 0 < stats.drafts_accepted < stats.tokens_drafted
    assert stats.drafts_accepted == 120 - stats.steps
    assert bench.metrics.value(TOKENS_DRAFTED) == stats.tokens_drafted
    assert bench.metrics.value(DRAFTS_ACCEPTED) == stats.drafts_accepted


def test_auto_stops_drafting_what_is_never_right_and_begins_again() -> None:
    """The prompt repeats itself; the model says something else each time, and later repeats itself, too."""
    prompt = [1, 2, 3] * 10

    def model(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
        row = np.zeros(vocab_size, np.float32)
        said = len(tokens) - len(prompt)
        row[(1, 2, said // 3 % 40 + 10)[said % 3] if said < 72 else 40 + said % 3] = 1
        return row

    bench = bench_of(model, "auto")
    bench.run(request(prompt=prompt, max_tokens=120, ignore_eos=True))
    drafted = [(batch.spans[0].start - len(prompt), batch.spans[0].num_drafts) for batch in bench.runner.batches]
    assert sum(count for start, count in drafted if start < 40) > 0
    assert sum(count for start, count in drafted if 40 <= start < 72) == 0
    assert max(count for start, count in drafted if start > 80) >= 2


def test_sampled_requests_draft_nothing_beside_greedy_ones() -> None:
    bench = bench_of(repeating(1, 10**9), "on")
    bench.run(
        request("sampled", [4, 5, 6], max_tokens=40, temperature=0.7, seed=3, ignore_eos=True),
        request("greedy", [1, 2, 3], max_tokens=40, ignore_eos=True),
    )
    slots = {span.slot for batch in bench.runner.batches for span in batch.spans if span.num_drafts}
    assert len(slots) == 1


def test_a_stop_string_within_accepted_tokens_ends_the_answer_there() -> None:
    """The tokens after it were taken already; none of them is counted or sent, and the slot is good for the next
    turn."""
    words = spell("abcd" * 20)

    def model(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
        row = np.zeros(vocab_size, np.float32)
        row[words[(len(tokens) - 3) % 80] if tokens[0] == 1 else END] = 1
        return row

    bench = bench_of(model, "on")
    bench.run(request(max_tokens=70, stop=("dabcda",), min_tokens=12))
    answer = answers(bench.events)["r"]
    plain = bench_of(model, "off")
    plain.run(request(max_tokens=70, stop=("dabcda",), min_tokens=12))
    check_same(answers(plain.events)["r"], answer, ends_early=False)
    assert answer.last.finish_reason is FinishReason.STOP
    check_slots(bench)
    bench.run(request("next", [1, 2, 3, *words[:12]], max_tokens=4))
    assert answers(bench.events)["next"].last.usage.cached_tokens >= 12
    assert answers(bench.events)["next"].token_ids == words[12:16]


def test_logits_that_are_not_finite_at_a_draft_end_the_request_where_they_would_without() -> None:
    def model(tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.float32]:
        return repeating(1, 10**9)(tokens, vocab_size) if len(tokens) < 50 else np.full(vocab_size, np.nan, np.float32)

    found = {}
    for mode in ("off", "on"):
        bench = bench_of(model, mode)
        bench.run(request(max_tokens=100, ignore_eos=True))
        found[mode] = answers(bench.events)["r"]
    assert found["on"].token_ids == found["off"].token_ids
    assert found["on"].last.error == found["off"].last.error
    assert "not finite" in str(found["on"].last.error)


def test_a_runner_that_fails_with_drafts_loses_only_its_requests() -> None:
    bench = bench_of(repeating(1, 10**9), "on")

    def fail(batch: StepBatch) -> None:
        if any(span.num_drafts for span in batch.spans):
            raise RuntimeError("no")

    bench.runner.before_forward = fail
    bench.run(request(max_tokens=100, ignore_eos=True))
    assert answers(bench.events)["r"].last.error == "the model runner failed: no"
    bench.runner.before_forward = lambda batch: None
    bench.run(request("again", max_tokens=20, ignore_eos=True))
    assert len(answers(bench.events)["again"].token_ids) == 20


# ---- who asks for it, and who cannot have it


@pytest.mark.parametrize(
    ("mode", "asked", "drafts"),
    [("off", None, 0), ("off", 0, 0), ("off", 3, 3), ("auto", 0, 0), ("on", 0, 0), ("on", 2, 2), ("on", None, 8)],
)
def test_a_request_may_ask_for_it(mode: str, asked: int | None, drafts: int) -> None:
    bench = bench_of(repeating(1, 10**9), mode)
    bench.run(replace(request(max_tokens=100, ignore_eos=True), prompt_lookup=asked))
    most = max(span.num_drafts for batch in bench.runner.batches for span in batch.spans)
    assert (0 < most <= drafts) if drafts else most == 0


@pytest.mark.parametrize("num_candidates", [0, 8])
def test_on_is_refused_where_the_runner_cannot(num_candidates: int) -> None:
    limits = Limits(4, LENGTH, 24, VOCAB, max_logits_per_span=9 if num_candidates else 1)
    with pytest.raises(InvalidRequest, match="the setting speculation is 'on'; the artifact's runtime gives"):
        Bench(num_candidates, limits, plain_settings(speculation="on"))


def test_auto_says_once_that_the_runner_cannot(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        bench = Bench(8, settings=plain_settings(speculation="auto"))
        bench.run(request(max_tokens=20, ignore_eos=True))
    assert [record.message.split(":")[0] for record in caplog.records] == ["speculation is auto and stays off"]
    with pytest.raises(InvalidRequest, match=r"prompt_lookup is 4; .* so it must be 0"):
        bench.engine.submit(replace(request("asks"), prompt_lookup=4))
    bench.run(replace(request("zero"), prompt_lookup=0))


def test_drafts_leave_prompts_their_budget() -> None:
    bench = bench_of(repeating(1, 10**9), "on", token_budget=12)
    bench.engine.submit(request("talks", max_tokens=100, ignore_eos=True))
    bench.step(3)
    before = len(bench.runner.batches)
    bench.engine.submit(request("comes", list(range(1, 45)), max_tokens=1))
    bench.drain()
    later = bench.runner.batches[before:]
    mixed = [batch for batch in later if len(batch.spans) == 2 and len(batch.spans[1].token_ids) > 1]
    assert [len(batch.spans[1].token_ids) for batch in mixed][:4] == [11, 11, 11, 11]
    assert all(batch.num_tokens <= 12 for batch in later)


def test_a_step_fits_the_budget_and_the_slot() -> None:
    bench = bench_of(repeating(1, 10**9), "on", Limits(2, 40, 24, VOCAB, max_logits_per_span=17))
    bench.run(*(request(f"r{i}", [i, 2, 3], max_tokens=256, ignore_eos=True) for i in range(2)))
    assert all(span.start + len(span.token_ids) < 40 for batch in bench.runner.batches for span in batch.spans)
    assert {len(answer.token_ids) for answer in answers(bench.events).values()} == {37}
