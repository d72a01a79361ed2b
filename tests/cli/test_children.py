"""Processes that end when their parent does, and no sooner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.children import start_child

from tests.support.server.processes import wait_for_end

# A parent that starts a sleeper from its main thread or from one that ends at once, and says its pid.
_PARENT = """
import sys, threading, time
from autoglm_cli.server.children import start_child
def start():
    print(start_child(["sleep", "600"]).pid, flush=True)
thread = threading.Thread(target=start)
thread.start(); thread.join()
time.sleep(600)
"""


def start_parent() -> tuple[subprocess.Popen[bytes], psutil.Process]:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_parent_takes_its_child_along(stopped: bool) -> None:
    parent, child = start_parent()
    while child.name() != "sleep":  # it is our own program before, which has yet to ask the kernel for its end
        time.sleep(0.01)
    if stopped:
        child.send_signal(signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    wait_for_end(child)


def test_the_end_of_the_thread_that_asked_ends_nothing() -> None:
    started = []
    thread = threading.Thread(target=lambda: started.append(start_child(["sleep", "600"])))
    thread.start()
    thread.join()
    (child,) = started
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL


def test_it_is_the_program_itself_with_popens_options(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        child = start_child(["sh", "-c", "echo $$ $WORD"], stdout=output, env={**os.environ, "WORD": "said"})
        assert child.wait() == 0
    assert (tmp_path / "output").read_text() == f"{child.pid} said\n"
    with pytest.raises(FileNotFoundError):
        start_child(["true"], cwd=tmp_path / "none")
