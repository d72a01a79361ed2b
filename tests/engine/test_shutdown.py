"""The end of a service in the middle of a step: everybody is answered, and memory goes when nobody computes in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_engine.core import Event, StepBatch
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.runners.base import Limits
from autoglm_engine.triton import engine_model as service_module
from autoglm_engine.triton.engine_model import EngineService
from autoglm_engine.triton.responses import _Entry

from tests.support.engine.engine_bench import TEXT, VOCAB
from tests.support.engine.fakes import FakeRunner, request
from tests.support.engine.small_service import PATIENCE, KeptReply, LongStep, serving, submit, until
from tests.support.export.tiny_decoders import SPECS, onnx_runner, random_weights

LIMITS = Limits(4, 64, 8, VOCAB)


@pytest.fixture
def runner() -> Iterator[LongStep]:
    made = LongStep(LIMITS)
    yield made
    made.may_end.set()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CLOSE_SECONDS", "_LAST_STEP_SECONDS"):
        monkeypatch.setattr(service_module, name, 0.02)


def in_the_middle(service: EngineService, runner: LongStep) -> list[KeptReply]:
    runner.is_armed = True
    replies = [submit(service, request(f"r{i}", [i, 1], stream=i % 2 == 0)) for i in range(16)]
    assert runner.computes.wait(PATIENCE)
    return replies


def check_shut_down(reply: KeptReply) -> None:
    last = reply.wait()
    assert isinstance(last, Event) and (last.error, last.error_code) == ("the server is shutting down", "UNAVAILABLE")


@pytest.mark.usefixtures("hasty")
def test_a_long_step_keeps_nobody_from_an_answer_and_its_memory(tmp_path: Path, runner: LongStep) -> None:
    with serving(tmp_path / "a", runner) as service:
        replies = in_the_middle(service, runner)
    for reply in replies:
        check_shut_down(reply)
    assert runner.closed_while_computing == [], "it was freed under the step"
    late = submit(service, request("late"))
    assert late.wait() == ("UNAVAILABLE", "the server is shutting down")
    runner.may_end.set()
    until(lambda: bool(runner.closed_while_computing))
    service.close()
    assert runner.closed_while_computing[0] is False
    assert all(len([1 for event in reply.events if event.is_last]) == 1 for reply in replies), (
        "what came later is nobody's"
    )


def test_a_step_that_ends_in_time_is_waited_for(tmp_path: Path, runner: LongStep) -> None:
    runner.may_end.set()
    with serving(tmp_path / "a", runner) as service:
        replies = in_the_middle(service, runner)
    assert all(reply.ended.is_set() for reply in replies)
    assert runner.closed_while_computing == [False]


@pytest.mark.usefixtures("hasty")
def test_a_reader_that_blocks_keeps_nobody_else_from_the_end(tmp_path: Path, runner: LongStep) -> None:
    class Blocks(KeptReply):
        def send(self, packed, *, last):  # type: ignore[no-untyped-def]
            blocked.set()
            assert may_go_on.wait(PATIENCE)

    blocked, may_go_on = threading.Event(), threading.Event()
    with serving(tmp_path / "a", runner) as service:
        service._replies._replies["blocks#1"] = _Entry("blocks", Blocks())
        service._loop.submit(request("blocks#1", stream=True, max_tokens=60, ignore_eos=True))
        assert blocked.wait(PATIENCE)
        others = [submit(service, request(f"r{i}", [i], max_tokens=60, ignore_eos=True)) for i in range(8)]
        closer = threading.Thread(target=service.close, daemon=True)
        closer.start()
        until(lambda: all(reply.ended.is_set() for reply in others))
        may_go_on.set()
        closer.join(PATIENCE)
    assert runner.closed_while_computing[0] is False


@pytest.mark.parametrize("is_started", [True, False])
def test_memory_goes_when_no_step_will_come(is_started: bool) -> None:
    loop, released = EngineLoop(Engine(FakeRunner(LIMITS), TEXT, []), lambda event: None), threading.Event()
    if is_started:
        loop.start()
    assert loop.close(PATIENCE)
    loop.after_steps(released.set)
    assert released.is_set()


def test_an_onnx_runner_that_is_closed_computes_no_more_and_closes_once(tmp_path: Path) -> None:
    spec = next(iter(SPECS.values()))
    made = onnx_runner(tmp_path, spec, random_weights(spec))
    made.close()
    made.close()
    with pytest.raises(ValueError, match="the runner is closed"):
        made.forward(StepBatch())


REAL = """
import sys, threading, time
from pathlib import Path
import numpy as np
from autoglm_engine.triton import engine_model as service_module
from autoglm_engine.core import Request, SamplingOptions
from autoglm_engine.triton.metrics_publisher import PublishedMetrics
from autoglm_engine.triton.engine_model import EngineService
from autoglm_engine.settings.model import EngineSettings, plain_settings
from tests.support.engine.busy_engine import no_series
from tests.support.engine.fakes import request
from tests.support.engine.small_service import submit

service_module._CLOSE_SECONDS = service_module._LAST_STEP_SECONDS = 0.01
service = EngineService(
    Path(sys.argv[1]), plain_settings(token_budget=4096), num_threads=2, metrics=PublishedMetrics(no_series),
    ask=lambda packed: None, embed=lambda text: None, embedder=Path("none"), encode=None, died=lambda: None,
)
began = threading.Event()
forward = service._runner.forward
def noted(batch):
    began.set()
    return forward(batch)
service._runner.forward = noted
service.start()
replies = [submit(service, request(f"r{i}", [7 + i] * 120, max_tokens=8)) for i in range(16)]
assert began.wait(120)
service.close()
ends = [reply.wait() for reply in replies]
assert {end.error_code for end in ends} == {"UNAVAILABLE"}, ends
service._loop._stepper.join(120)
assert service._runner._decoder is None, "the memory is still there"
print("ends", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parity
def test_a_decoder_is_not_freed_under_its_step(artifact: Path) -> None:
    """It ended the process."""
    paths = os.pathsep.join([*(path for path in sys.path if path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(artifact)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr
