"""A redis-server of one's own on a free port of loopback, to be killed and frozen."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from autoglm_cli.server.children import start_child
from autoglm_cli.server.ports import free_ports

BINARY = "redis-server"
_SECONDS = 120.0


def is_installed() -> bool:
    return shutil.which(BINARY) is not None


class RedisServer:
    """Its snapshots go to `folder`, and it makes none unasked. `options` as on the command line."""

    def __init__(self, folder: Path, *options: str) -> None:
        (self.port,) = free_ports("127.0.0.1", 1)
        self._command = [
            BINARY,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "no",
            "--loglevel",
            "warning",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it answers."""
        self._process = start_child(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + _SECONDS
        while not self._answers():
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """What it held is lost, but for a snapshot that was asked for."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_SECONDS)
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections, accepts others, and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was not started"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as asker:
            asker.sendall(b"PING\r\n")
            return asker.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        return False


@contextlib.contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
