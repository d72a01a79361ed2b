"""Between the engine and Triton: who gets an event, what a cancel finds, what is published, what is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from autoglm_engine.core import Event, FinishReason, Stages, Usage
from autoglm_engine.messages import Packed, unpack_sent_event
from autoglm_engine.metrics import REQUEST_PROMPT_TOKENS, REQUESTS, RUNNING, TIME_TO_FIRST_TOKEN, TOKENS_OUT, MetricSpec
from autoglm_engine.tokenizer.pool import MAX_SECONDS
from autoglm_engine.triton.board.acks import AckBoard, AckGate
from autoglm_engine.triton.board.finder import boards_of
from autoglm_engine.triton.board.seal import SEAL_BYTES
from autoglm_engine.triton.board.server_identity import ServerIdentity
from autoglm_engine.triton.forwarded_cancels import ForwardedCancels
from autoglm_engine.triton.metrics_publisher import PublishedMetrics, unit_suffix
from autoglm_engine.triton.responses import CANCEL_MEMORY_SECONDS, Replies

from tests.support.engine.fakes import FakeClock


@dataclass
class FakeReply:
    sent: list[tuple[Event, bool]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    thinks: list[bool] = field(default_factory=list)
    broken: bool = False

    def send(self, packed: Packed, *, last: bool) -> None:
        if self.broken:
            raise RuntimeError("the stream is gone")
        sent = unpack_sent_event(packed[SEAL_BYTES:])
        self.sent.append((sent.event, last))
        self.numbers.append(sent.sequence_number)
        self.thinks.append(sent.prompt_thinks)

    def fail(self, code: str, message: str) -> None:
        self.failed.append((code, message))


@pytest.fixture
def board(tmp_path: Path) -> Iterator[AckBoard]:
    with AckBoard(8, tmp_path) as made:
        yield made


@pytest.fixture
def gate(board: AckBoard) -> AckGate:
    return AckGate(board)


def event(request_id: str, finish: FinishReason | None = None, **more: str) -> Event:
    return Event(request_id, (1,), Usage(1, 1, 0), Stages(), finish, **more)  # type: ignore[arg-type]


def test_each_event_of_a_request_says_whether_its_prompt_thinks(gate: AckGate) -> None:
    replies, thinker, other = Replies(gate), FakeReply(), FakeReply()
    thinking, plain = replies.open("a", thinker), replies.open("a", other)
    replies.note_thinking(thinking)
    replies.note_thinking("gone")
    for finish in (None, FinishReason.STOP):
        replies(event(thinking, finish))
        replies(event(plain, finish))
    assert (thinker.thinks, other.thinks) == ([True, True], [False, False])


def test_cancels_that_another_engine_passed_on_meet_who_is_here(board: AckBoard, gate: AckGate, tmp_path: Path) -> None:
    replies, cancelled = Replies(gate), list[str]()
    passed = ForwardedCancels(board, replies, cancelled.extend)
    meant = [replies.open("a", FakeReply()) for _ in range(2)]
    for caller_id in ("", "b"):
        replies.open(caller_id, FakeReply())
    passed.look()
    assert not cancelled
    (elder,) = boards_of(tmp_path, ServerIdentity.of_parent())
    elder.forward_cancels(["a", "", "c"])
    passed.look()
    replies.open("a", FakeReply())  # which came later
    passed.look()
    assert cancelled == meant
    elder.close()


def test_each_event_reaches_its_own_reply_and_the_last_one_says_so(gate: AckGate) -> None:
    replies = Replies(gate)
    one, two = FakeReply(), FakeReply()
    first, second = replies.open("same", one), replies.open("same", two)
    assert first != second
    for made in (event(first), event(second), event(first, FinishReason.STOP), event(first)):
        replies(made)
    assert [(sent.request_id, last) for sent, last in one.sent] == [(first, False), (first, True)]
    assert [last for _, last in two.sent] == [False]


def test_a_failure_travels_as_the_last_event(gate: AckGate) -> None:
    replies, reply = Replies(gate), FakeReply()
    request_id = replies.open("a", reply)
    replies(event(request_id, error="it broke", error_code="INTERNAL"))
    replies(event(request_id))
    ((sent, last),) = reply.sent
    assert (sent.error_code, sent.error, last, reply.failed) == ("INTERNAL", "it broke", True, [])


def test_a_broken_stream_still_lets_go_of_its_cell(gate: AckGate) -> None:
    replies = Replies(gate)
    for _ in range(20):  # more than the board has cells
        request_id = replies.open("a", FakeReply(broken=True))
        with pytest.raises(RuntimeError):
            replies(event(request_id, FinishReason.STOP))
    assert replies.find(["a"]) == []


def test_a_cancel_finds_all_requests_of_that_name(gate: AckGate) -> None:
    replies = Replies(gate)
    wanted = [replies.open("a", FakeReply()) for _ in range(2)]
    replies.open("b", FakeReply())
    assert replies.find(["a", "c"]) == wanted


def test_a_cancel_that_came_first_is_remembered_for_a_while(gate: AckGate) -> None:
    clock = FakeClock()
    replies = Replies(gate, clock)
    replies.find(["a", "b", ""])
    later = clock.now + 0.5  # it waited before the tokenizer
    assert replies.was_cancelled("a", later)
    assert not replies.was_cancelled("a", later)  # once
    assert replies.was_cancelled("a", clock.now - 0.5)  # another one that the cancel overtook
    assert not replies.was_cancelled("", later)  # requests without an id are never meant
    clock.now += CANCEL_MEMORY_SECONDS
    assert not replies.was_cancelled("b", later)


def test_a_cancel_is_remembered_as_long_as_a_prompt_may_wait_to_be_encoded(gate: AckGate) -> None:
    clock = FakeClock()
    replies = Replies(gate, clock)
    arrival = clock.now - 0.5
    replies.find(["a", "b"])
    clock.now += MAX_SECONDS + 5
    assert replies.was_cancelled("a", arrival)
    replies.find(["c"])
    clock.now += MAX_SECONDS
    assert not replies.was_cancelled("b", arrival)


def end(replies: Replies, request_id: str) -> None:
    replies(event(request_id, FinishReason.STOP))


def refuse(replies: Replies, request_id: str) -> None:
    replies.refuse(request_id, "UNAVAILABLE", "the queue is full")


@pytest.mark.parametrize("how", [end, refuse])
def test_a_cancel_that_came_late_does_not_meet_the_next_request_of_that_id(
    gate: AckGate, how: Callable[[Replies, str], None]
) -> None:
    clock = FakeClock()
    replies = Replies(gate, clock)
    how(replies, replies.open("a", FakeReply()))
    clock.now += 60  # its reader is slow
    assert replies.find(["a"]) == []
    clock.now += 0.001
    replies.open("a", FakeReply())
    assert not replies.was_cancelled("a", arrival=clock.now)
    assert replies.was_cancelled("a", arrival=clock.now - 0.01)  # it had come before the cancel


def test_a_cancel_that_met_a_refused_request_does_not_meet_the_next_one_of_that_id(gate: AckGate) -> None:
    clock = FakeClock()
    replies = Replies(gate, clock)
    replies.find(["a"])
    clock.now += 0.001
    refuse(replies, replies.open("a", FakeReply()))
    replies.open("a", FakeReply())
    assert not replies.was_cancelled("a", arrival=clock.now)


def test_a_cancel_that_went_to_the_engine_before_does_not_meet_the_next_request_of_that_id(gate: AckGate) -> None:
    """Nobody here had that id, and the one that was meant may run in the engine that this one replaced."""
    clock = FakeClock()
    replies = Replies(gate, clock)
    replies.find(["a"], may_be_elsewhere=True)
    cancelled_at = clock.now
    clock.now += 1.0
    replies.open("a", FakeReply())
    assert replies.was_cancelled("a", cancelled_at - 0.1), "it was here before its cancel, and waited to be encoded"
    replies.find(["b"], may_be_elsewhere=True)
    clock.now += 1.0
    replies.open("b", FakeReply())
    assert not replies.was_cancelled("b", clock.now)


def test_a_cancel_of_no_id_is_nobodys(gate: AckGate) -> None:
    replies = Replies(gate)
    replies.open("", FakeReply())
    assert replies.find([""]) == []


class FakeSeries:
    def __init__(self) -> None:
        self.value = 0.0
        self.observed: list[float] = []

    def increment(self, value: float) -> None:
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


def test_metrics_are_gathered_and_handed_on() -> None:
    made: dict[tuple[str, str], FakeSeries] = {}

    def make(spec: MetricSpec, label: str) -> FakeSeries:
        return made.setdefault((spec.name, label), FakeSeries())

    metrics = PublishedMetrics(make)
    assert (TOKENS_OUT.name, "") in made
    metrics.inc(TOKENS_OUT, 3)
    metrics.inc(TOKENS_OUT, 2)
    metrics.inc(REQUESTS, label="stop")
    metrics.set(RUNNING, 4)
    metrics.set(RUNNING, 1)
    metrics.observe(TIME_TO_FIRST_TOKEN, 0.25)
    assert made[TOKENS_OUT.name, ""].value == 0
    metrics.publish()
    metrics.publish()  # nothing twice
    assert made[TOKENS_OUT.name, ""].value == 5
    assert made[REQUESTS.name, "stop"].value == 1
    assert made[RUNNING.name, ""].value == 1
    assert made[TIME_TO_FIRST_TOKEN.name, ""].observed == [0.25]


def test_metric_names_follow_prometheus() -> None:
    shown = [unit_suffix(spec) for spec in (TOKENS_OUT, RUNNING, TIME_TO_FIRST_TOKEN, REQUEST_PROMPT_TOKENS)]
    assert shown == ["_total", "", "_seconds", "_tokens"]


def test_an_event_that_cannot_be_packed_ends_its_answer_with_an_error(gate: AckGate) -> None:
    """Whoever reads it would wait for ever, or miss a part of it."""
    replies, reply, other = Replies(gate), FakeReply(), FakeReply()
    broken, whole = replies.open("broken", reply), replies.open("whole", other)
    replies(event(broken))
    replies(dataclasses.replace(event(broken), token_ids=(object(),)))  # type: ignore[arg-type]
    replies(event(broken, FinishReason.STOP))
    replies(event(whole, FinishReason.STOP))
    assert [last for _, last in reply.sent] == [False, True]
    assert reply.sent[-1][0].error is not None and reply.sent[-1][0].error_code == "INTERNAL"
    assert [last for _, last in other.sent] == [True]


def test_the_events_of_an_answer_are_numbered_from_0_whoever_shares_the_engine(gate: AckGate) -> None:
    replies, one, other = Replies(gate), FakeReply(), FakeReply()
    first, second = replies.open("same", one), replies.open("same", other)
    for request_id in (first, second, first, first, second):
        replies(event(request_id))
    for request_id in (first, second):
        replies(event(request_id, FinishReason.STOP))
    assert [one.numbers, other.numbers] == [[0, 1, 2, 3], [0, 1, 2]]
    whole = FakeReply()
    replies(event(replies.open("same", whole), FinishReason.STOP))
    assert whole.numbers == [0]
