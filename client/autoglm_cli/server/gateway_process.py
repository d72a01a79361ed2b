"""The gateway in a process of its own, beside a server that runs here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoglm_client.transport.tls import TLS

from autoglm_cli.errors import CommandError

from .children import start_child
from .local_server import STARTUP_SECONDS, LocalServer
from .ports import free_ports

_STOP_SECONDS = 10.0


@contextmanager
def gateway_beside(
    server: LocalServer, host: str, port: int, config: Path | None, otlp: str | None, models: Sequence[str] = ()
) -> Iterator[Callable[[], None]]:
    """In front of `server`, once it answers; it says itself where it listens. `config`: its other settings. `models`:
    the server's, where it has others than autoglm. Gives a check that raises CommandError once it has ended, which is
    raised here, too, where it does not begin."""
    port = port or _free_port(host)
    arguments = ["gateway", "--server", server.grpc_url, "--host", host, "--port", str(port)]
    arguments += _tls_arguments(server.client_tls)
    arguments += [] if config is None else ["--config", str(config)]
    arguments += [] if otlp is None else ["--otlp", otlp]
    arguments += [word for model in models for word in ("--models", model)]
    process = start_child([sys.executable, "-m", "autoglm_cli", *arguments], env=_environment())
    try:
        _wait(process, host, port)
        yield lambda: _check_alive(process)
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # one that is stopped would not end
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """How this server is reached, the arguments say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AUTOGLM_TLS")}


def _tls_arguments(tls: TLS | None) -> list[str]:
    if tls is None:
        return []
    said = {"ca": tls.ca, "cert": tls.cert, "key": tls.key, "name": tls.server_name}
    return [
        "--server-tls",
        *(word for name, value in said.items() if value for word in (f"--server-tls-{name}", str(value))),
    ]


def _free_port(host: str) -> int:
    try:
        return free_ports(host, 1)[0]
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror or error}") from None


def _check_alive(process: subprocess.Popen[bytes]) -> None:
    if (code := process.poll()) is not None:
        raise CommandError(f"the gateway ended with exit code {code}")


def _wait(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    give_up_at = time.monotonic() + STARTUP_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise CommandError(f"the gateway does not listen on {host}:{port}") from None
            time.sleep(0.05)
