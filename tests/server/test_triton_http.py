"""tritonserver's own HTTP ports: no body of a few megabytes ends the server, and there is none where nobody wants
it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_probe import server_is_ready
from autoglm_cli.server.stack_limit import STACK_BYTES

from tests.support.server.raw_http import PATIENCE_SECONDS, connect

pytestmark = pytest.mark.server
CONFIG = """
backend: "python"
max_batch_size: 0
input [{name: "text" data_type: TYPE_STRING dims: [1]}]
output [{name: "out" data_type: TYPE_STRING dims: [1]}]
instance_group [{kind: KIND_CPU}]
"""
MODEL = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("nothing is computed here")) for _ in requests]
"""
MIB = 1 << 20


def with_length(kind: str, body: bytes) -> bytes:
    return f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


# Each took more than 8 MiB of a thread's stack.
BODIES = {
    "form": with_length("application/x-www-form-urlencoded", b"a=" + b"x" * (4 * MIB)),
    "chunks": b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\na\r\n" * 600_000
    + b"0\r\n\r\n",
    "brackets": with_length("application/json", b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that needs nothing."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "model" / "1").mkdir(parents=True)
    (folder / "model" / "config.pbtxt").write_text(CONFIG)
    (folder / "model" / "1" / "model.py").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[LocalServer]:
    with LocalServer(repository) as running:
        yield running


def answer(port: int, path: str, body: bytes) -> bytes:
    with connect(port, PATIENCE_SECONDS) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: triton\r\n".encode() + body)
        return connection.recv(1000)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["/v2/models/model/generate", "/metrics"])
def test_no_body_ends_the_server(triton: LocalServer, path: str, body: str) -> None:
    port = triton.metrics_port if path == "/metrics" else triton.http_port
    assert answer(port, path, BODIES[body]).startswith(b"HTTP/1.1 ")
    assert triton.is_ready()


def test_its_threads_have_the_stack_for_it(triton: LocalServer) -> None:
    limits = Path(f"/proc/{triton.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max stack size")]
    assert line.split()[3] == str(STACK_BYTES)


@pytest.fixture(scope="module")
def quiet(repository: Path) -> Iterator[LocalServer]:
    """Without HTTP, and with a log that says nothing of what the server does."""
    with LocalServer(repository, http=False, log_file="/dev/null") as running:
        yield running


def test_without_http_nobody_listens_there(quiet: LocalServer) -> None:
    assert server_is_ready(quiet.grpc_url) and quiet.is_ready()
    with pytest.raises(ConnectionRefusedError):
        connect(quiet.http_port)
    with connect(quiet.metrics_port), pytest.raises(AssertionError, match="no HTTP port"):
        _ = quiet.http_url


def test_keys_are_hidden_whatever_the_log_is(quiet: LocalServer) -> None:
    said = Path(f"/proc/{quiet.pid}/cmdline").read_text()
    assert "--grpc-restricted-protocol=" in said
    assert quiet.control_key not in said and quiet.shared_memory_key not in said


def test_a_port_where_nobody_listens_is_not_ready() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not server_is_ready(f"127.0.0.1:{unused.getsockname()[1]}")
