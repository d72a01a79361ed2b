"""What a real driver is asked, asked of the fake GPU: every part holds there, and finds what does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from autoglm_engine.errors import ArtifactError

from tests.gpu import real_cuda
from tests.support.tensorrt.fake_cuda import FakeCuda

ROOT = Path(__file__).parents[2]
# The fake checks by assertions what a driver answers with a status; and another thread's calls are the same capture's.
OF_A_DRIVER = {"a_capture_that_fails_is_abandoned", "another_thread_copies_during_a_capture"}


@pytest.mark.parametrize("part", real_cuda.PARTS, ids=lambda part: part.__name__)
def test_the_fake_holds(part: real_cuda.Part) -> None:
    if part.__name__ in OF_A_DRIVER:
        pytest.skip("the fake asserts what a driver refuses")
    made: list[FakeCuda] = []

    def new() -> FakeCuda:
        made.append(FakeCuda())
        return made[-1]

    assert real_cuda.held(part, new) == ""
    assert not made[0].leaks


class Lazy(FakeCuda):
    """Rows are copied as if they had no pitch, and an event says nothing."""

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        super().copy_rows(target, width, source, width, width, height)

    def wait(self, event: object) -> None: ...


@pytest.mark.parametrize(
    "part", [real_cuda.rows_are_copied_by_their_pitches, real_cuda.an_event_that_was_waited_for_has_passed]
)
def test_what_does_not_hold_is_told(part: real_cuda.Part) -> None:
    assert real_cuda.held(part, lambda: Lazy())


def test_calls_are_timed() -> None:
    cuda = FakeCuda()
    found = real_cuda.microseconds(cuda, count=3)
    assert all(value > 0 for value in found.values())
    cuda.close()
    assert not cuda.leaks


def test_no_driver_is_one_sentence() -> None:
    def none() -> FakeCuda:
        raise ArtifactError("no NVIDIA driver answers on this machine")

    assert real_cuda.held(real_cuda.PARTS[0], none) == "no NVIDIA driver answers on this machine"
    environment = {"PYTHONPATH": str(ROOT / "model_repository/engine/1"), "PATH": ""}
    command = [sys.executable, "tests/gpu/real_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
