"""The two threads: nothing is lost, a slow or failing reader disturbs no step, and the end is always answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from autoglm_engine.core import Event, FinishReason, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.errors import DeviceError, ShuttingDown, Unavailable
from autoglm_engine.runners.base import Limits

from tests.support.engine.fakes import FakeRunner, answers, expected_greedy, letters_text, request

VOCAB = 63
PATIENCE = 120.0  # seconds; everything below takes milliseconds


class Reader:
    """A sink that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait_for_last(self, count: int) -> None:
        with self._news:
            done = self._news.wait_for(lambda: sum(event.is_last for event in self.events) >= count, PATIENCE)
        assert done, f"{count} answers did not come"

    def wait_for_any(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: bool(self.events), PATIENCE)


@contextmanager
def serving(runner: FakeRunner, sink: Reader, died: Callable[[], object] = lambda: None) -> Iterator[EngineLoop]:
    loop = EngineLoop(Engine(runner, letters_text(), []), sink, died)
    loop.start()
    try:
        yield loop
    finally:
        loop.close(PATIENCE)
    assert not any(thread.name.startswith("engine-") for thread in threading.enumerate())


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(Limits(4, 64, 8, VOCAB))


def test_requests_from_many_threads_are_all_answered(runner: FakeRunner) -> None:
    reader = Reader()
    with serving(runner, reader) as loop:

        def client(number: int) -> None:
            for i in range(5):
                loop.submit(request(f"{number}/{i}", [number, i], stream=i % 2 == 0))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader.wait_for_last(30)
        assert loop.healthy
    found = answers(reader.events)
    for number in range(6):
        for i in range(5):
            assert found[f"{number}/{i}"].token_ids == expected_greedy([number, i], 8, VOCAB)


def test_an_idle_loop_takes_no_steps(runner: FakeRunner) -> None:
    reader = Reader()
    with serving(runner, reader) as loop:
        loop.submit(request())
        reader.wait_for_last(1)
        num_steps = len(runner.batches)
        time.sleep(0.05)
        assert len(runner.batches) == num_steps == 8


def test_cancel_wakes_and_ends(runner: FakeRunner) -> None:
    reader = Reader()
    runner.before_forward = lambda batch: time.sleep(0.1)  # so that the answers would take longer than what follows
    with serving(runner, reader) as loop:
        loop.submit(request(stream=True, max_tokens=60))
        reader.wait_for_any()
        assert loop.cancel(["r"]) == 1
        reader.wait_for_last(1)
    assert reader.events[-1].finish_reason is FinishReason.CANCELLED


def test_a_reader_that_blocks_stalls_no_step(runner: FakeRunner) -> None:
    reader, may_go_on = Reader(), threading.Event()

    class Blocked(Reader):
        def __call__(self, event: Event) -> None:
            assert may_go_on.wait(PATIENCE)
            reader(event)

    with serving(runner, Blocked()) as loop:
        loop.submit(request(stream=True, max_tokens=30))
        deadline = time.monotonic() + PATIENCE
        while len(runner.batches) < 30 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert len(runner.batches) == 30
        assert reader.events == []
        may_go_on.set()
        reader.wait_for_last(1)


def test_a_reader_that_raises_costs_its_event_only(runner: FakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Reader):
        def __call__(self, event: Event) -> None:
            if event.request_id == "bad":
                raise OSError("gone")
            super().__call__(event)

    reader = Clumsy()
    with serving(runner, reader) as loop:
        loop.submit(request("bad"))
        loop.submit(request("good"))
        reader.wait_for_last(1)
        assert loop.healthy
    (said,) = caplog.records
    assert said.getMessage() == "an event was not sent" and vars(said)["request_id"] == "bad"


def test_closing_answers_everybody_and_refuses_the_rest(runner: FakeRunner) -> None:
    reader = Reader()
    runner.before_forward = lambda batch: time.sleep(0.1)  # so that the answers would take longer than what follows
    with serving(runner, reader) as loop:
        for i in range(8):
            loop.submit(request(f"r{i}", max_tokens=60, stream=True))
        reader.wait_for_any()
    found = answers(reader.events)
    assert len(found) == 8
    assert {answer.last.error for answer in found.values()} == {"the server is shutting down"}
    assert not loop.healthy
    with pytest.raises(ShuttingDown):
        loop.submit(request("late"))
    loop.close(PATIENCE)


def test_a_loop_that_dies_answers_everybody_and_is_not_healthy(
    runner: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    class Death(BaseException):
        """Not an Exception: the engine survives those."""

    def die(batch: StepBatch) -> None:
        if len(runner.batches) == 3:
            raise Death("struck by lightning")

    reader = Reader()
    runner.before_forward = die
    with serving(runner, reader) as loop:
        for i in range(6):
            loop.submit(request(f"r{i}", max_tokens=60, stream=True))
        reader.wait_for_last(6)
        assert {event.error for event in reader.events if event.is_last} == {"the engine stopped: struck by lightning"}
        assert not loop.healthy
        with pytest.raises(Unavailable, match="the engine stopped"):
            loop.submit(request("late"))
    assert "the engine's loop died" in caplog.text


def test_a_gpu_that_fails_ends_the_loop_and_whoever_runs_it_is_told_last(runner: FakeRunner) -> None:
    """Any other failure of a runner costs the requests of its step; after this one no step can succeed."""

    def die(batch: StepBatch) -> None:
        if len(runner.batches) == 3:
            raise DeviceError("the GPU could not copy: lost")

    reader = Reader()
    runner.before_forward = die
    seen_at_death: list[int] = []
    with serving(runner, reader, lambda: seen_at_death.append(len(reader.events))) as loop:
        for i in range(6):
            loop.submit(request(f"r{i}", max_tokens=60, stream=True))
        reader.wait_for_last(6)
        assert {event.error for event in reader.events if event.is_last} == {
            "the engine stopped: the GPU could not copy: lost"
        }
        assert not loop.healthy
    assert seen_at_death == [len(reader.events)]


def test_closing_is_no_death(runner: FakeRunner) -> None:
    deaths: list[str] = []
    with serving(runner, Reader(), lambda: deaths.append("died")) as loop:
        loop.submit(request("r", max_tokens=60))
    assert not deaths


def test_a_loop_that_never_started_can_be_closed(runner: FakeRunner) -> None:
    loop = EngineLoop(Engine(runner, letters_text(), []), Reader())
    assert not loop.healthy
    loop.close()
