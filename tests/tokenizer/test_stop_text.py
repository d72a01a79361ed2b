"""Nothing of a stop string is shown, however an answer ends: by it, by its length, cancelled or late, at every place.

Tokens are random, bytes mostly, so that a stop string's text often waits for what decides it when the answer is ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from autoglm_engine.cache.coalescing import CachingEngine
from autoglm_engine.cache.shared_request import SharedRequestGate
from autoglm_engine.core import Event, FinishReason
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.triton.detokenizer_model import piece_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.engine.byte_tokenizers import TOKENIZERS, kept_text, spelling, text_of
from tests.support.engine.engine_bench import LIMITS, Bench
from tests.support.engine.fakes import Answer, answers, request

PROMPT = [1, 2, 3]
WAYS = {"cancelled": FinishReason.CANCELLED, "late": FinishReason.DEADLINE, "length": FinishReason.LENGTH}
BYTES = [*b"abab\n", *"é好€".encode(), 0xC3, 0xE5, 0xFF]
FAR_FUTURE = 1000.0  # a deadline after every test


@dataclass(frozen=True, slots=True)
class Case:
    tokenizer: str
    token_ids: tuple[int, ...]
    stops: tuple[str, ...]
    min_tokens: int
    num_told: int  # tokens before it is ended
    way: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(sorted(TOKENIZERS)))
    tokenizer = TOKENIZERS[name]()
    token_ids = draw(st.lists(tokens_of(name, tokenizer), min_size=1, max_size=10))
    return Case(
        name,
        tuple(token_ids),
        tuple(draw(st.lists(stops_of(tokenizer, token_ids), min_size=1, max_size=3))),
        draw(st.integers(0, 4)),
        draw(st.integers(1, len(token_ids))),
        draw(st.sampled_from(sorted(WAYS))),
    )


def tokens_of(name: str, tokenizer: Tokenizer) -> st.SearchStrategy[int]:
    spelled = st.sampled_from([spelling(tokenizer, byte) for byte in BYTES])
    words = st.integers(259, tokenizer.get_vocab_size() - 1) if name == "byte fallback" else spelled
    return st.one_of(spelled, spelled, words)


def stops_of(tokenizer: Tokenizer, token_ids: list[int]) -> st.SearchStrategy[str]:
    """Mostly what the answer says somewhere."""
    places = st.integers(0, len(token_ids) - 1)
    said = st.builds(lambda a, b: tokenizer.decode(token_ids[min(a, b) : max(a, b) + 1]), places, places)
    return st.one_of(said, said, st.text("ab\n é好\ufffd", min_size=1, max_size=3)).filter(bool)


def say(bench: Bench, token_ids: tuple[int, ...]) -> None:
    def model(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], vocab_size: int) -> np.ndarray:  # type: ignore[type-arg]
        row = np.zeros(vocab_size, np.float32)
        row[token_ids[min(len(tokens) - len(PROMPT), len(token_ids) - 1)]] = 1.0
        return row

    bench.runner.model = model


def bench_of(case: Case, **parts: object) -> Bench:
    limits = replace(LIMITS, vocab_size=TOKENIZERS[case.tokenizer]().get_vocab_size())
    bench = Bench(0, limits=limits, text=text_of(case.tokenizer), eos=(2,), **parts)  # type: ignore[arg-type]
    say(bench, case.token_ids)
    return bench


def answer_both(case: Case) -> tuple[Answer, Answer]:
    """As a stream and whole, ended in the same step."""
    bench = bench_of(case)
    most = case.num_told if case.way == "length" else len(case.token_ids) + 1
    options = {"stop": case.stops, "min_tokens": case.min_tokens, "max_tokens": most, "deadline": FAR_FUTURE}
    for name in ("stream", "whole"):
        bench.engine.submit(request(name, PROMPT, stream=name == "stream", ignore_eos=True, **options))
    bench.step(case.num_told)  # the first one only issues, and the next one collects before it ends anybody
    END[case.way](bench)
    bench.drain()
    bench.assert_idle()
    found = answers(bench.events)
    return found["stream"], found["whole"]


END: dict[str, Callable[[Bench], object]] = {
    "length": lambda bench: None,
    "cancelled": lambda bench: bench.engine.cancel(["stream", "whole"]),
    "late": lambda bench: setattr(bench.clock, "now", FAR_FUTURE + 1),
}


def shown(case: Case, events: list[Event]) -> str:
    """As the detokenizer writes it, piece by piece."""
    return "".join(piece_text(text_of(case.tokenizer), event) for event in events)


def check(case: Case) -> None:
    stream, whole = answer_both(case)
    told = whole.token_ids
    assert told == list(case.token_ids[: len(told)]) and stream.token_ids == told
    text = shown(case, whole.events)
    assert text == kept_text(TOKENIZERS[case.tokenizer](), told, case.stops, case.min_tokens)
    assert shown(case, stream.events) == text
    assert stream.last.finish_reason is whole.last.finish_reason
    assert whole.last.finish_reason in (FinishReason.STOP, WAYS[case.way])
    assert stream.last.usage.completion_tokens == len(told)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(cases())
def test_no_stop_string_is_shown_however_the_answer_ends(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_bytes_that_wait_are_looked_at_when_the_answer_is_ended(name: str, way: str) -> None:
    tokenizer = TOKENIZERS[name]()
    token_ids = tuple(spelling(tokenizer, byte) for byte in b"xENDy")
    for num_told in range(1, 6):
        check(Case(name, token_ids, ("END",), 0, num_told, way))


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_bytes_of_the_first_tokens_are_no_stop_string_even_where_they_waited(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    token_ids = tuple(spelling(tokenizer, byte) for byte in b"ENDEND.")
    for min_tokens in range(5):
        check(Case(name, token_ids, ("END",), min_tokens, 7, "length"))


# ---- readers of one computation


@dataclass(frozen=True, slots=True)
class Reader:
    comes: int  # before this step
    leaves: int  # before this one
    way: str
    stream: bool


READERS = st.lists(
    st.builds(Reader, st.integers(0, 6), st.integers(1, 14), st.sampled_from(sorted(WAYS)), st.booleans()),
    min_size=1,
    max_size=4,
)


def shared_bench(case: Case) -> Bench:
    gate, chosen = SharedRequestGate(), plain_settings(cache_mode="exact")
    bench = bench_of(case, gate=gate, settings=chosen)
    bench.engine = CachingEngine(bench.engine, "digest", bench.text, chosen, gate, clock=bench.clock)  # type: ignore[assignment]
    return bench


def read_together(case: Case, readers: list[Reader]) -> dict[str, Answer]:
    """Each comes and leaves in its step, which takes 10 ms; then one asks for what is kept by then."""
    bench = shared_bench(case)
    options = {"stop": case.stops, "min_tokens": case.min_tokens, "max_tokens": len(case.token_ids)}
    begin = bench.clock.now
    for step in range(15):
        for number, reader in enumerate(readers):
            if reader.comes == step:
                late = begin + reader.leaves / 100 if reader.way == "late" else None
                one = request(str(number), PROMPT, stream=reader.stream, deadline=late, ignore_eos=True, **options)
                bench.events += bench.engine.submit(one) or []
            if reader.leaves == step and reader.way == "cancelled":
                bench.engine.cancel([str(number)])
        bench.step()
        bench.clock.now = max(bench.clock.now, begin + (step + 1) / 100)
    bench.drain()
    bench.events += bench.engine.submit(request("again", PROMPT, ignore_eos=True, **options)) or []
    bench.drain()
    bench.assert_idle()
    return answers(bench.events)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(cases(), READERS)
def test_who_shares_an_answer_and_leaves_it_sees_nothing_of_a_stop_string(case: Case, readers: list[Reader]) -> None:
    tokenizer, found = TOKENIZERS[case.tokenizer](), read_together(case, readers)
    assert len(found) == 1 + len(readers)
    whole = shown(case, found["again"].events)
    for answer in found.values():
        told, text = answer.token_ids, shown(case, answer.events)
        assert told == list(case.token_ids[: len(told)])
        assert text == kept_text(tokenizer, told, case.stops, case.min_tokens)
        if answer.last.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert text == whole
