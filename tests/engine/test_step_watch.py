"""A step that never ends: the thread that waits for it is lost, everybody else is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from autoglm_engine.core import Event, StepBatch
from autoglm_engine.engine.step_watch import StepWatch
from autoglm_engine.errors import DeviceError, InvalidRequest
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.triton.engine_model import EngineService

from tests.support.engine.engine_bench import VOCAB
from tests.support.engine.fakes import request
from tests.support.engine.small_service import PATIENCE, KeptReply, LongStep, serving, submit, until

LIMITS = Limits(4, 64, 8, VOCAB, on_gpu=True)
SOON, NEVER = plain_settings(step_timeout_seconds=1), plain_settings(step_timeout_seconds=3600)


@pytest.fixture
def runner() -> Iterator[LongStep]:
    made = LongStep(LIMITS)
    yield made
    made.may_end.set()


def asked_for_stats(service: EngineService) -> tuple[str, str] | None:
    """How they are refused, as a health check is."""
    reply = KeptReply()
    service.control(b'{"stats": true}', reply)
    return reply.failure


def test_everybody_is_told_and_the_process_ends(
    tmp_path: Path, runner: LongStep, caplog: pytest.LogCaptureFixture
) -> None:
    died = threading.Event()
    with serving(tmp_path / "a", runner, SOON, died=died.set) as service:
        assert service.healthy and asked_for_stats(service) is None
        runner.is_armed = True
        replies = [submit(service, request(f"r{i}", [i, 1], stream=i % 2 == 0)) for i in range(8)]
        assert runner.computes.wait(PATIENCE)
        service._loop._step_began = -1e6  # a second ago, and more
        assert died.wait(PATIENCE)
        assert not service.healthy
        why = asked_for_stats(service)
        assert why is not None and why[0] == "INTERNAL" and "a step has been in flight for" in why[1]
        for reply in replies:
            last = reply.wait()
            assert isinstance(last, Event) and last.error and "(step_timeout_seconds): the device hangs" in last.error
        assert "more than the 1 s that it may take" in caplog.text
        late = submit(service, request("late")).wait()
        assert isinstance(late, tuple) and "the device hangs" in late[1]
        runner.may_end.set()


def test_a_step_on_a_cpu_takes_the_time_it_takes(tmp_path: Path) -> None:
    """Half a minute and more, where nothing is set: here the clock says so."""
    runner = LongStep(replace(LIMITS, on_gpu=False))
    died: list[object] = []
    with serving(tmp_path / "a", runner, died=lambda: died.append(0)) as service:
        runner.is_armed = True
        reply = submit(service, request("slow"))
        assert runner.computes.wait(PATIENCE)
        service._loop._step_began = -1e6
        assert service.healthy and asked_for_stats(service) is None
        service._step_watch._tell()
        runner.may_end.set()
        assert isinstance(reply.wait(), Event)
    assert not died


def test_nothing_hangs_while_nothing_is_computed_or_while_it_loads(tmp_path: Path, runner: LongStep) -> None:
    """The steps that warm a runner up are run before anybody watches."""
    loading: list[float] = []
    runner.before_forward = lambda batch: loading.append(service_seconds())
    seconds: list[EngineService] = []

    def service_seconds() -> float:
        return seconds[0]._loop.seconds_of_step if seconds else 0.0

    with serving(tmp_path / "a", runner, NEVER) as service:
        assert loading and not any(loading)
        seconds.append(service)
        submit(service, request("one")).wait()
        assert any(loading)
        until(lambda: service._loop.seconds_of_step == 0)
        assert service.healthy


def test_a_step_that_fails_is_over(tmp_path: Path, runner: LongStep) -> None:
    def fail(batch: StepBatch) -> None:
        raise DeviceError("injected")

    died = threading.Event()
    with serving(tmp_path / "a", runner, NEVER, died=died.set) as service:
        runner.before_forward = fail
        last = submit(service, request("one")).wait()
        assert died.wait(PATIENCE)
        assert isinstance(last, Event) and last.error and "injected" in last.error
        until(lambda: service._loop.seconds_of_step == 0)


@pytest.mark.parametrize("seconds", [0.001, 0.999, -1.0, 3601.0, float("nan")])
def test_a_limit_that_a_busy_machines_pause_would_reach_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match=f"the setting step_timeout_seconds is {seconds}; it must be"):
        plain_settings(step_timeout_seconds=seconds)


@pytest.mark.parametrize(
    ("setting", "on_gpu", "limit"), [(0, True, 30), (0, False, 0), (120, True, 120), (120, False, 120)]
)
def test_the_limit_is_the_devices_where_none_is_set(setting: float, on_gpu: bool, limit: float) -> None:
    assert plain_settings(step_timeout_seconds=setting).seconds_of_step(on_gpu) == limit


@pytest.mark.parametrize(
    ("seconds", "limit", "hangs"), [(0, 30, False), (29.9, 30, False), (30.1, 30, True), (1e9, 0, False)]
)
def test_it_is_told_once(seconds: float, limit: float, hangs: bool) -> None:
    told: list[DeviceError] = []
    watch = StepWatch(lambda: seconds, limit, told.append)
    watch._tell()
    watch._tell()
    assert [str(failure) for failure in told] == (
        [
            (
                "a step has been in flight for 30 s, more than the 30 s that it may take (step_timeout_seconds): "
                "the device hangs"
            )
        ]
        if hangs
        else []
    )


class Stepped:
    """A step that never ends, and a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[DeviceError] = []
        self.watch = StepWatch(lambda: self.now - 100.0, 30, self.tell, lambda: self.now)

    def tell(self, failure: DeviceError) -> None:
        self.told.append(failure)

    def look(self, *gaps: float) -> None:
        for gap in gaps:
            self.now += gap
            self.watch._tell()


def test_a_process_that_was_stopped_gives_the_step_its_time_anew() -> None:
    """A frozen container, a moved machine, a debugger: the step may have ended long ago, and nobody could see it."""
    stepped = Stepped()
    stepped.look(*[0.5] * 20)
    stepped.now += 3600
    assert stepped.watch.failure is None  # a health check that comes first
    stepped.look(0.0, *[0.5] * 60)
    assert not stepped.told and stepped.watch.failure is None
    stepped.look(0.5)
    assert len(stepped.told) == 1


def test_what_hangs_hangs_while_everybody_is_told() -> None:
    stepped = Stepped()
    later: list[Any] = []

    def slow(failure: DeviceError) -> None:
        stepped.now += 10
        later.append(stepped.watch.failure)

    stepped.watch._hung = slow
    stepped.look(*[0.5] * 61)
    stepped.look(0.5)
    assert [str(failure)[:30] for failure in later] == ["a step has been in flight for "]
    assert stepped.watch.failure is not None
