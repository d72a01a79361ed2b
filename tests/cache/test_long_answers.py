"""A long kept answer costs neither who submits nor who steps any time that grows with it, and it is the same answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from autoglm_engine.cache import response_cache
from autoglm_engine.cache.response_cache import (
    MAX_AT_ONCE,
    ResponseCache,
    num_values,
    pack_entry,
    read_entry,
    with_body,
)
from autoglm_engine.cache.tiers import Found
from autoglm_engine.core import CacheHit, CacheUse, Event, FinishReason, Request, Stages, TokenLogprobs, Usage
from autoglm_engine.errors import InvalidRequest, NotCached
from autoglm_engine.messages import Ack, pack_body, pack_event, unpack_event
from autoglm_engine.triton.detokenizer_model import piece_text
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.test_sharing import counted, shared_bench, submit
from tests.support.engine.engine_bench import TEXT, VOCAB, Bench
from tests.support.engine.fakes import FakeClock, request
from tests.support.engine.small_service import until

KEY = b"k" * 32
CUT_IDS = st.integers(0, VOCAB - 1)  # some are parts of characters
LONG = {"max_tokens": 40, "logprobs": 5, "ignore_eos": True}


def long_answer(num_tokens: int = 100, num_top: int = 20) -> Event:
    top = tuple((token_id, -0.5 * token_id) for token_id in range(num_top))
    entries = tuple(TokenLogprobs(token_id, -1.25 * token_id, top) for token_id in range(num_tokens))
    usage = Usage(7, num_tokens, 3)
    return Event("r", tuple(range(num_tokens)), usage, Stages(), FinishReason.STOP, 5, is_first=True, logprobs=entries)


class Worked:
    """The threads on which long answers were packed and read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.packed: list[str] = []
        self.read: list[str] = []
        patch.setattr(response_cache, "pack_body", self._noting(self.packed, response_cache.pack_body))
        patch.setattr(response_cache, "unpack_event", self._noting(self.read, response_cache.unpack_event))
        patch.setattr(response_cache, "_check", self._noting(self.read, response_cache._check))

    def _noting(self, names: list[str], work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            names.append(threading.current_thread().name.rsplit("-", 1)[0])
            return work(*arguments)

        return noted


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(response_cache, "MAX_AT_ONCE", 50)
    made, before = shared_bench(), set(threading.enumerate())
    yield made
    made.engine.close()  # type: ignore[attr-defined]
    until(lambda: set(threading.enumerate()) <= before)  # what they pack would be taken for the next test's


def entry_of(bench: Bench) -> Any:
    return next(iter(bench.engine._kept._cache._entries.values()))  # type: ignore[attr-defined]


def last_of(bench: Bench, request_id: str) -> Event:
    """Steps until it was told everything."""

    def is_told() -> bool:
        bench.clock.now += 0.001
        bench.step()
        return any(event.is_last for event in bench.events if event.request_id == request_id)

    until(is_told)
    (last,) = [event for event in bench.events if event.request_id == request_id and event.is_last]
    return last


def joined(bench: Bench, request_id: str) -> Event:
    """What its events say together, as read; each decodes on its own."""
    last_of(bench, request_id)
    pieces = [unpack_event(pack_event(event, None))[0] for event in bench.events if event.request_id == request_id]
    said = [piece for piece in pieces if piece.token_ids]
    assert [piece.is_first for piece in said] == [True, *[False] * (len(said) - 1)]
    assert all(
        piece.usage.completion_tokens == sum(len(p.token_ids) for p in said[: number + 1])
        for number, piece in enumerate(said[:-1])
    )
    token_ids = tuple(token_id for piece in said for token_id in piece.token_ids)
    texts = [piece_text(TEXT, piece) for piece in said]
    logprobs = tuple(entry for piece in said for entry in piece.logprobs)
    whole = replace(pieces[-1], token_ids=token_ids, logprobs=logprobs, is_first=True, text_bytes=None)
    if any(piece.text_bytes is not None for piece in said):
        whole = replace(whole, text_bytes=len("".join(texts).encode()))
    assert piece_text(TEXT, whole) == "".join(texts)
    return as_read(whole)


def as_read(event: Event) -> Event:
    """As the detokenizer sees it, but for what is each reader's own."""
    read, _ = unpack_event(pack_event(event, None))
    return replace(
        read,
        request_id="",
        stages=Stages(),
        usage=replace(read.usage, cached_tokens=0),
        cache_hit=CacheHit.NONE,
        cache_age_ms=0.0,
    )


def ask(name: str, **options: Any) -> Request:
    return request(name, **{**LONG, **options})


@pytest.mark.parametrize("ack", [None, Ack(3, 2**40)])
@pytest.mark.parametrize("answer", [long_answer(), long_answer(33, 0), replace(long_answer(0), text_bytes=None)])
def test_a_packed_body_is_read_as_what_it_was_made_of(answer: Event, ack: Ack | None) -> None:
    packed = replace(answer, token_ids=(), logprobs=(), text_bytes=None, is_first=False, body=pack_body(answer))
    assert unpack_event(pack_event(packed, ack)) == (answer, ack)


def test_threads_of_their_own_pack_and_read_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = Worked(monkeypatch)
    bench.run(ask("first"))
    computed = last_of(bench, "first")
    until(lambda: bool(entry_of(bench).is_packed))
    num_batches = len(bench.runner.batches)
    bench.clock.now += 2.0
    submit(bench, ask("again"))
    kept = last_of(bench, "again")
    assert (kept.cache_hit, kept.cache_age_ms) == (CacheHit.EXACT, pytest.approx(2000.0, abs=10))
    assert kept.body is not None and as_read(kept) == as_read(computed)
    submit(bench, ask("streamed", stream=True))
    assert joined(bench, "streamed") == as_read(computed)
    assert (set(worked.packed), set(worked.read)) == ({"cache-pack"}, {"cache-pack", "lookup"})
    assert (counted(bench)["hits"], counted(bench)["stores"], len(bench.runner.batches)) == (2, 1, num_batches)
    assert {event.request_id for event in bench.events} == {"first", "again", "streamed"}
    bench.assert_idle()


def test_a_short_one_is_given_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "MAX_AT_ONCE", MAX_AT_ONCE)
    bench.run(ask("first"))
    (kept,) = bench.engine.submit(ask("again"))  # type: ignore[misc]
    assert kept.body is None and as_read(kept) == as_read(last_of(bench, "first"))


def test_it_is_there_before_it_is_packed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.engine._kept._packing, "put", lambda work: None)  # type: ignore[attr-defined]
    bench.run(ask("first"))
    num_steps = len(bench.runner.batches)
    submit(
        bench,
        ask(
            "again",
        ),
    )
    kept = last_of(bench, "again")
    assert kept.cache_hit is CacheHit.EXACT and as_read(kept) == as_read(last_of(bench, "first"))
    assert len(bench.runner.batches) == num_steps
    assert counted(bench)["bytes"] > 0


@pytest.mark.parametrize("use", [CacheUse.DEFAULT, CacheUse.ONLY])
@pytest.mark.parametrize("how", ["damaged", "flushed"])
def test_what_is_lost_meanwhile_is_computed_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str, use: CacheUse
) -> None:
    bench.run(ask("first"))
    until(lambda: bool(entry_of(bench).is_packed))
    entries = bench.engine._kept._cache._entries  # type: ignore[attr-defined]
    if how == "damaged":
        ((key, entry),) = entries.items()
        pieces = entry.body.pieces
        damaged = replace(pieces[0], token_ids=b"0" + pieces[0].token_ids[1:])
        entries[key] = replace(entry, body=replace(entry.body, pieces=(damaged, *pieces[1:])))
        submit(bench, replace(ask("again"), cache=use))
    else:
        read = threading.Event()
        begun = threading.Event()

        def slow(*arguments: Any) -> Event | None:
            begun.set()
            assert read.wait(60)
            return read_entry(*arguments)

        monkeypatch.setattr("autoglm_engine.cache.kept_answers.read_entry", slow)
        submit(bench, replace(ask("again"), cache=use))
        assert begun.wait(60)
        bench.engine.flush()  # type: ignore[attr-defined]
        read.set()
    last = last_of(bench, "again")
    if use is CacheUse.ONLY:
        assert (last.error_code, last.error) == (
            NotCached.code,
            "the answer is not cached, and the request takes only one that is",
        )
    else:
        assert last.cache_hit is CacheHit.NONE and as_read(last) == as_read(last_of(bench, "first"))
    assert counted(bench)["corrupted"] == (how == "damaged")


def test_who_reads_a_long_answer_can_be_cancelled(bench: Bench) -> None:
    bench.run(ask("first"))
    submit(bench, ask("again"))
    bench.engine.cancel(["again"])
    assert last_of(bench, "again").finish_reason in (FinishReason.CANCELLED, FinishReason.LENGTH)
    bench.assert_idle()


def test_what_another_tier_found_is_packed_where_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "MAX_AT_ONCE", 50)
    worked = Worked(monkeypatch)

    class Full:
        max_seconds = 60.0

        def wants(self, request: Request) -> bool:
            return True

        def find(self, key: bytes, request: Request) -> Found:
            return Found(replace(long_answer(), request_id=""), 1.0, CacheHit.EXACT)

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    bench = shared_bench(tiers=(Full(),))
    submit(bench, ask("first"))
    found = last_of(bench, "first")
    assert as_read(found) == as_read(long_answer())
    assert worked.packed == ["lookup"]
    until(lambda: bool(entry_of(bench).is_packed))
    assert worked.packed == ["lookup"]  # once
    bench.engine.close()  # type: ignore[attr-defined]


def test_the_bytes_of_a_packed_entry_count() -> None:
    cache = ResponseCache(1 << 20, 60.0, shared_bench().metrics, FakeClock())
    answer = long_answer()
    assert num_values(answer) > MAX_AT_ONCE
    entry = cache.keep(KEY, answer)
    assert entry is not None and cache.stats.bytes == entry.num_bytes > 100_000 and cache.stats.stores == 0
    packed = pack_entry(KEY, entry, TEXT)
    cache.settle(KEY, entry, packed)
    assert (cache.get(KEY), cache.stats.bytes, cache.stats.stores) == (packed, packed.num_bytes, 1)
    cache.settle(KEY, entry, pack_entry(KEY, entry, TEXT))  # late
    assert cache.get(KEY) is packed
    cache.flush()
    cache.settle(KEY, packed, packed)
    assert (cache.stats.bytes, cache.stats.entries) == (0, 0)
    kept = with_body(answer, TEXT)
    again = pack_entry(KEY, replace(entry, head=replace(kept, request_id="")), TEXT)
    assert read_entry(KEY, again, TEXT) == read_entry(KEY, packed, TEXT)
    assert with_body(kept, TEXT) is kept and with_body(long_answer(3), TEXT).body is None


def test_what_is_too_large_for_one_piece_is_neither_kept_nor_joined_late() -> None:
    """It would be refused on its way out: computed, and streamed, it arrives."""
    bench = shared_bench(max_kept=5 * 12 * 14)  # five tokens with five candidates each
    submit(bench, replace(ask("first"), stream=True))
    bench.step()
    submit(bench, replace(ask("early"), stream=True))
    for _ in range(20):
        bench.step()
    submit(bench, replace(ask("late"), stream=True))
    answers = {name: last_of(bench, name) for name in ("first", "early", "late")}
    assert {name: last.cache_hit for name, last in answers.items()} == {
        "first": CacheHit.NONE,
        "early": CacheHit.COALESCED,
        "late": CacheHit.NONE,
    }
    assert all(sum(len(e.token_ids) for e in bench.events if e.request_id == name) == 40 for name in answers)
    assert (counted(bench)["stores"], counted(bench)["entries"]) == (0, 0)
    submit(bench, ask("small", max_tokens=4))
    last_of(bench, "small")
    assert counted(bench)["stores"] == 1
    bench.assert_idle()
    bench.engine.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("most", "is_given"), [(None, True), (30_000, False)])
def test_what_a_tier_found_and_is_too_large_is_computed(
    monkeypatch: pytest.MonkeyPatch, most: int | None, is_given: bool
) -> None:
    """A server with more shared memory kept it."""

    class Full:
        max_seconds = 60.0

        def wants(self, request: Request) -> bool:
            return True

        def find(self, key: bytes, request: Request) -> Found:
            return Found(replace(long_answer(200), request_id=""), 1.0, CacheHit.EXACT)

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    bench = shared_bench(tiers=(Full(),), max_kept=most)
    submit(bench, ask("first"))
    assert (last_of(bench, "first").cache_hit is CacheHit.EXACT) == is_given
    bench.engine.close()  # type: ignore[attr-defined]


# ---- in pieces


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 3), st.integers(4, 60))
def test_pieces_decode_to_the_whole_wherever_a_stop_string_cut_it(
    data: st.DataObject, num_top: int, at_once: int
) -> None:
    token_ids = tuple(data.draw(st.lists(CUT_IDS, min_size=1, max_size=40)))
    text = TEXT.decode(token_ids, True)
    text_bytes = data.draw(st.none() | st.integers(0, len(text.encode())))
    answer = replace(long_answer(len(token_ids), num_top), token_ids=token_ids, text_bytes=text_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(response_cache, "MAX_AT_ONCE", at_once)
        body = pack_body(answer, response_cache.pieces_of(answer, TEXT))
    bare = replace(answer, token_ids=(), logprobs=(), text_bytes=None, is_first=False)
    assert unpack_event(pack_event(replace(bare, body=body), None))[0] == answer
    pieces = [unpack_event(pack_event(replace(bare, body=body.only(n)), None))[0] for n in range(len(body.pieces))]
    assert [piece.is_first for piece in pieces] == [True, *[False] * (len(pieces) - 1)]
    assert tuple(token_id for piece in pieces for token_id in piece.token_ids) == token_ids
    assert tuple(entry for piece in pieces for entry in piece.logprobs) == answer.logprobs
    assert "".join(piece_text(TEXT, piece) for piece in pieces) == piece_text(TEXT, answer)


class Gate:
    def __init__(self) -> None:
        self.closed = set[str]()

    def may_send(self, request_id: str, now: float) -> bool:
        return request_id not in self.closed


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, Gate]]:
    monkeypatch.setattr(response_cache, "MAX_AT_ONCE", 50)
    gate, before = Gate(), set(threading.enumerate())
    made = shared_bench(inner=gate)
    made.run(ask("first"))
    until(lambda: bool(entry_of(made).is_packed))
    yield made, gate
    made.engine.close()  # type: ignore[attr-defined]
    until(lambda: set(threading.enumerate()) <= before)


def behind(bench: Bench, gate: Gate, **options: Any) -> Request:
    """A streamed request for the kept answer, which got one piece and acknowledges no other."""
    asked = ask("slow", stream=True, **options)
    submit(bench, asked)
    until(lambda: bool(bench.step()))
    gate.closed.add("slow")
    bench.step(5)
    assert len([event for event in bench.events if event.request_id == "slow"]) == 1
    return asked


def test_a_stream_of_a_kept_answer_goes_on_with_its_acknowledgements_and_others_go_between(
    gated: tuple[Bench, Gate],
) -> None:
    bench, gate = gated
    behind(bench, gate)
    submit(bench, request("other", [7, 8], max_tokens=5, ignore_eos=True))
    assert last_of(bench, "other").finish_reason is FinishReason.LENGTH
    submit(bench, ask("quick", stream=True))
    whole = joined(bench, "quick")
    assert [event.request_id for event in bench.events].count("slow") == 1
    assert bench.engine.has_work and 0 < bench.engine.rest_seconds < 0.01  # type: ignore[operator]
    gate.closed.clear()
    assert joined(bench, "slow") == whole == as_read(last_of(bench, "first"))
    assert [event.request_id for event in bench.events].count("slow") > 5
    assert not bench.engine.has_work and bench.engine.rest_seconds is None
    bench.assert_idle()


def test_pieces_leave_time_for_others_also_where_each_is_handled_at_once(gated: tuple[Bench, Gate]) -> None:
    bench, _ = gated
    submit(bench, ask("again", stream=True))
    until(lambda: bool(bench.step()))
    times, count = [bench.clock.now], 1
    while bench.engine.has_work:
        bench.clock.now += 0.001
        count += len(found := bench.step())
        times += [bench.clock.now] * len(found)
    assert count > 5
    assert min(np.diff(times)) >= 0.029


@pytest.mark.parametrize("how", ["cancel", "deadline", "shutdown"])
def test_who_is_behind_can_end(gated: tuple[Bench, Gate], how: str) -> None:
    bench, gate = gated
    asked = behind(bench, gate, deadline=bench.clock.now + 10.0)
    with pytest.raises(InvalidRequest, match="in use"):
        submit(bench, asked)
    if how == "cancel":
        assert bench.engine.cancel(["slow"]) == 1
    elif how == "deadline":
        bench.clock.now += 11.0
    bench.events += bench.engine.shut_down() if how == "shutdown" else bench.engine.step()
    events = [event for event in bench.events if event.request_id == "slow"]
    assert [event.is_last for event in events] == [False, True]
    if how == "shutdown":
        assert events[-1].error == "the server is shutting down"
    else:
        read = [unpack_event(pack_event(event, None))[0] for event in events]
        assert read[-1].finish_reason is {"cancel": FinishReason.CANCELLED, "deadline": FinishReason.DEADLINE}[how]
        assert read[-1].usage.completion_tokens == sum(len(event.token_ids) for event in read) < 40
        submit(bench, replace(asked, deadline=None))
        gate.closed.clear()
        last_of(bench, "slow")
    assert not bench.engine.has_work


def test_who_joins_late_is_told_in_pieces_what_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "MAX_AT_ONCE", 50)
    bench = shared_bench()
    submit(bench, ask("first", stream=True))
    bench.step(30)
    submit(bench, ask("late", stream=True))
    assert joined(bench, "late") == joined(bench, "first")
    sizes = [len(event.token_ids) for event in bench.events if event.request_id == "late"]
    assert len(sizes) > 5 and max(sizes) <= 4
    bench.engine.close()  # type: ignore[attr-defined]
