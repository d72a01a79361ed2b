"""A model's process ends with its server, and ends no other process than that."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from autoglm_engine.system.server_process import ServerProcess

from tests.support.server.processes import wait_for_end

# A server that starts a model, which runs the lines given, says its pid and goes on.
_SERVER = """
import subprocess, sys, time
model = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
# One that no signal of the first thousands reaches: none makes it run.
_UNBLOCK = "time.sleep(4); signal.pthread_sigmask(signal.SIG_UNBLOCK, [15])"
_BLOCKED_SERVER = f"""
import signal
signal.signal(15, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [15])
{_SERVER.replace("time.sleep(600)", _UNBLOCK)}
time.sleep(600)
"""
_WAITING_SERVER = f"import signal; signal.signal(15, lambda *_: None)\n{_SERVER}"  # as one with requests in flight
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
_MODEL = """
import os, sys, time
from autoglm_engine.system.server_process import ServerProcess
server = ServerProcess()
{line}
print(os.getpid(), flush=True)
time.sleep(600)
"""


def start(line: str) -> tuple[psutil.Popen, psutil.Process]:
    command = [sys.executable, "-c", _SERVER, _MODEL.format(line=line)]
    server = psutil.Popen(command, stdout=subprocess.PIPE)
    return server, psutil.Process(int(server.stdout.readline()))


@pytest.mark.slow
def test_a_model_ends_with_its_server() -> None:
    server, model = start("server.end_with_it()")
    server.kill()
    server.communicate()
    wait_for_end(model)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "ends_by"), [("", signal.SIGTERM), ("stop", signal.SIGKILL)])
def test_a_server_is_told_to_end_and_then_made_to(before: str, ends_by: signal.Signals) -> None:
    stopped = "' T ' in open(f'/proc/{server.pid}/stat').read()"  # a stop that is still on its way comes behind SIGTERM
    stop = f"os.kill(server.pid, 19); [time.sleep(0.01) for _ in iter(lambda: {stopped}, True)]; " if before else ""
    server, model = start(f"server.end_with_it(); print(os.getpid(), flush=True); {stop}server.end()")
    assert server.wait() == -ends_by
    server.communicate()
    wait_for_end(model)


def may_make_namespaces() -> bool:
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_make_namespaces(), reason="only root may make a namespace of process ids")
@pytest.mark.parametrize("waiting", [_WAITING_SERVER, _BLOCKED_SERVER], ids=["waiting", "blocked"])
def test_the_first_process_of_a_container_is_made_to_end_too(waiting: str) -> None:
    """No signal of its own container reaches it: of SIGTERM it makes what it likes, SIGKILL it does not see."""
    asked = "server.end_with_it(); server.end(); print('asked', flush=True); os.kill(1, 9); time.sleep(0.5)"
    server = psutil.Popen(
        [*NAMESPACE, sys.executable, "-c", waiting, _MODEL.format(line=asked)], stdout=subprocess.PIPE
    )
    assert server.stdout.readline() == b"asked\n"
    assert server.stdout.readline() == b"2\n"  # the model and its server went on
    server.wait()
    server.communicate()


def test_the_number_of_a_server_that_ended_is_nobodys() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        server = ServerProcess()
        assert server.pid == psutil.Process().ppid()
        server.pid = other.pid  # as if that were its number now: its own model's parent it is not
        server.end()
        assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE
        other.terminate()
    assert other.returncode == -signal.SIGTERM


def test_every_model_ends_with_its_server() -> None:
    models = Path(__file__).parents[2] / "model_repository"
    adapters = sorted(models.glob("*/1/model.py"))
    assert len(adapters) == 5
    assert all("end_with_it()" in adapter.read_text() for adapter in adapters)
