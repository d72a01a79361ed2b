"""The gateway in a process of its own, beside a server that runs here."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoglm_client.local_server import LocalServer

from .failures import CommandError

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


@contextmanager
def gateway_beside(
    server: LocalServer, host: str, port: int, config: Path | None, otlp: str | None
) -> Iterator[Callable[[], None]]:
    """In front of `server`, once it answers; it says itself where it listens. `config`: its other settings. Gives a check that
    raises CommandError once it has ended, which is raised here, too, where it does not begin."""
    port = _checked_port(host, port)
    arguments = ["gateway", "--server", server.grpc_url, "--host", host, "--port", str(port)]
    arguments += [] if config is None else ["--config", str(config)]
    arguments += [] if otlp is None else ["--otlp", otlp]
    process = subprocess.Popen([sys.executable, "-m", "autoglm_client.cli", *arguments])
    try:
        _wait(process, host, port)
        yield lambda: _check_alive(process)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(host: str) -> int:
    return _checked_port(host, 0)


def _checked_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises CommandError where somebody else listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        return int(probe.getsockname()[1])


def _check_alive(process: subprocess.Popen[bytes]) -> None:
    if (code := process.poll()) is not None:
        raise CommandError(f"the gateway ended with exit code {code}")


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
