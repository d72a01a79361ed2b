"""The gateway in a process of its own, beside a server that runs here."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoglm_client.local_server import LocalServer

from .failures import CommandError

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


@contextmanager
def gateway_beside(server: LocalServer, host: str, port: int, config: Path | None, otlp: str | None) -> Iterator[None]:
    """In front of `server`, once it answers; it says itself where it listens. `config`: its other settings. Raises CommandError
    where it ends at once."""
    port = port or free_port(host)
    arguments = ["gateway", "--server", server.grpc_url, "--host", host, "--port", str(port)]
    arguments += [] if config is None else ["--config", str(config)]
    arguments += [] if otlp is None else ["--otlp", otlp]
    process = subprocess.Popen([sys.executable, "-m", "autoglm_client.cli", *arguments])
    try:
        _wait(process, host, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise CommandError(f"the gateway does not listen on {host}:{port}") from None
            time.sleep(0.05)
