"""Ports are tried before anything is started, and who holds one that is taken is named."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.ports import check_ports, free_ports
from autoglm_client.exceptions import LocalServerError
from autoglm_gateway.server.serving import allow_open_files

MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
LOOPBACK = "127.0.0.1"


@pytest.fixture(params=[LOOPBACK, "0.0.0.0"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server has it
        holder.bind((request.param, 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_and_its_holder_are_named(taken: int) -> None:
    with pytest.raises(LocalServerError) as refusal:
        check_ports({"--http-port": (LOOPBACK, 0), "--grpc-port": (LOOPBACK, taken)})
    sentence = rf"cannot listen on 127\.0\.0\.1:{taken}: \S+ \(process {os.getpid()}\) listens there already; "
    assert re.fullmatch(sentence + "stop it, or choose another port with --grpc-port", str(refusal.value))


def test_two_settings_cannot_have_one_port() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        port = holder.getsockname()[1]
    with pytest.raises(LocalServerError, match=rf"^--http-port and --grpc-port are both {port}; they must differ$"):
        check_ports({"--http-port": (LOOPBACK, port), "--grpc-port": (LOOPBACK, port)})
    check_ports({"--http-port": (LOOPBACK, port), "--grpc-port": ("127.0.0.2", port)})
    check_ports({"--http-port": (LOOPBACK, port)})  # nothing is kept


@pytest.mark.parametrize("host", [LOOPBACK, "0.0.0.0", "::1"])
def test_a_free_port_comes_to_nobody_by_chance_and_to_the_server_that_names_it(host: str) -> None:
    """A quarter of all that the kernel has to give are asked for: of eight that it gives freely, one would be among
    them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    chosen = free_ports(host, 8)
    assert len(set(chosen)) == 8
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    allow_open_files((high - low) // 4)
    with ExitStack() as stack:
        for _ in range((high - low) // 4):
            other = stack.enter_context(socket.socket(family))
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((host, 0))
            assert other.getsockname()[1] not in chosen
        for port in chosen:
            server = stack.enter_context(socket.socket(family))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_cannot_be_had_is_one_sentence(host: str) -> None:
    with pytest.raises(LocalServerError, match=rf"^cannot listen on {re.escape(host)}:8000: [A-Z][^\n]+$"):
        check_ports({"--http-port": (host, 8000)})


def test_a_server_is_not_started_where_a_port_is_taken(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = LocalServer(MODEL_REPOSITORY, artifact=tmp_path, metrics_port=taken)
    with pytest.raises(LocalServerError, match=f"cannot listen on 127.0.0.1:{taken}: .* with metrics_port$"):
        server.start()
    assert server.pid is None and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("taken", [LOOPBACK], indirect=True)
@pytest.mark.parametrize("option", ["--metrics-port", "--gateway-port"])
def test_serve_tries_all_ports_before_it_exports_or_starts(taken: int, option: str, tmp_path: Path) -> None:
    others = dict.fromkeys(("--http-port", "--grpc-port", "--metrics-port", "--gateway-port"), "0")
    named = [word for pair in (others | {option: str(taken)}).items() for word in pair]
    command = [sys.executable, "-m", "autoglm_cli", "serve", "--gateway", "--export-if-missing", *named]
    command += ["--repository", str(MODEL_REPOSITORY), "--artifact", str(tmp_path / "artifact")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{taken}: ") and done.stderr.count("\n") == 1
    assert f"(process {os.getpid()})" in done.stderr and option in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--host", "::1"], "the host '::1' is not an IPv4 address or a host name"),
        (["--shared-memory-key", "short"], "the shared-memory key has 5 characters"),
        (["--gateway", "--gateway-host", "0.0.0.0"], "keys"),
        (["--gateway", "--gateway-config", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
)
def test_serve_refuses_what_it_cannot_use_before_it_exports(given: list[str], sentence: str, tmp_path: Path) -> None:
    others = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--gateway-port", "0"]
    command = [sys.executable, "-m", "autoglm_cli", "serve", "--export-if-missing", *others, *given]
    command += ["--repository", str(MODEL_REPOSITORY), "--artifact", str(tmp_path / "artifact")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 1 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1
