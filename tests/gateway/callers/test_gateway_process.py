"""`autoglm gateway` and `autoglm serve --gateway` as processes: they start, answer, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.ports import free_ports

COMMAND = [sys.executable, "-m", "autoglm_cli"]
HELLO = {"model": "autoglm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    give_up_at = time.monotonic() + 300
    while time.monotonic() < give_up_at:
        assert process.poll() is None, process.communicate()[0]
        try:
            if httpx.get(f"{url}/health/ready", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("it was never ready")


def end(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; what it said. Nothing that it started outlives it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    return output


def listening(pid: int) -> set[int]:
    """Ports of the process and of those that it started."""
    parent = psutil.Process(pid)
    found = [one for process in (parent, *parent.children(recursive=True)) for one in process.net_connections("tcp")]
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def start(*arguments: str) -> subprocess.Popen[str]:
    def restore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=restore
    )


@pytest.mark.server
def test_the_gateway_answers_until_it_is_told_to_stop(server: LocalServer) -> None:
    (port,) = free_ports("127.0.0.1", 1)
    process = start("gateway", "--server", server.grpc_url, "--port", str(port))
    wait_for(f"http://127.0.0.1:{port}", process)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=HELLO, timeout=300).json()
    assert answer["usage"]["completion_tokens"] <= 4
    output = end(process)
    assert process.returncode == 0 and f"http://127.0.0.1:{port}/v1" in output and "Traceback" not in output


@pytest.mark.server
def test_serve_starts_both_and_stops_both(artifact: Path) -> None:
    ports = free_ports("127.0.0.1", 3)
    named = zip(("--gateway-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    process = start("serve", "--gateway", "--artifact", str(artifact), *(word for pair in named for word in pair))
    wait_for(f"http://127.0.0.1:{ports[0]}", process)
    answer = httpx.post(f"http://127.0.0.1:{ports[0]}/v1/chat/completions", json=HELLO, timeout=300)
    assert answer.status_code == 200
    assert listening(process.pid) == set(ports), "Triton's HTTP is one more"
    assert "Traceback" not in end(process) and process.returncode == 0


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_in_one_sentence() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, "gateway", "--port", str(port)], capture_output=True, text=True, timeout=300)
    assert (
        done.returncode != 0 and f"cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
    )
