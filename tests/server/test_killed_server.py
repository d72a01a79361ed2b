"""A replica one of whose processes is killed: nothing stays, streams end, and the next one starts at once. The long
version is hostile/test_killed_processes.py."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer

from tests.conftest import MODEL_REPOSITORY
from tests.support.server.processes import wait_for_end
from tests.support.server.replica import LongStream, Replica, free_ports, wait_until

pytestmark = pytest.mark.server


def test_killed_replicas_leave_nothing_and_the_next_one_starts(artifact: Path, tmp_path: Path) -> None:
    ports = free_ports()
    # Signals before it, and the one that ends the replica.
    kills: list[tuple[list[str], tuple[str, signal.Signals]]] = [
        (["engine", "gateway", "template"], ("cli", signal.SIGKILL)),
        (["watch"], ("tritonserver", signal.SIGTERM)),
        ([], ("gateway", signal.SIGKILL)),
    ]
    for stopped, (name, number) in kills:
        replica = Replica(artifact, ports, tmp_path)
        try:
            stream = LongStream(replica)
            for each in stopped:
                replica.family[each].send_signal(signal.SIGSTOP)
            replica.family[name].send_signal(number)
            wait_until(lambda it=replica: it.has_ended)  # type: ignore[misc]
            wait_until(lambda it=replica: not it.left())  # type: ignore[misc]
            wait_until(lambda it=stream: it.outcome is not None)  # type: ignore[misc]
            assert stream.outcome.startswith(("error", "cut")), stream.outcome  # type: ignore[union-attr]
            assert "Traceback" not in replica.said
        finally:
            replica.kill()


def test_models_end_with_a_killed_server(artifact: Path) -> None:
    """Also where nobody else ends them, as beside a tritonserver that was started by hand."""
    with LocalServer(MODEL_REPOSITORY, artifact=artifact) as server:
        tritonserver = psutil.Process(server.pid)
        models = tritonserver.children(recursive=True)
        assert len(models) == 6  # one has a process for the chat template
        stub = next(model for model in models if model.name().startswith("triton_python"))
        stub.send_signal(signal.SIGTERM)  # Triton's part of it no longer looks after its server then
        tritonserver.kill()
        wait_for_end(*models)
