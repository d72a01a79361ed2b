"""A real redis-server of Debian on a free port, and a proxy before it that makes it slow, silent or unreachable."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from autoglm_perf.system import redis_server
from autoglm_perf.system.redis_server import RedisServer


class Proxy:
    """Bytes pass to `port` and back; replies wait for `delay` seconds before each chunk of `chunk` bytes, or for
    ever."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.chunk = 1 << 16
        self.is_silent = False
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # nobody listens there
                    near.close()
                    continue
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self.chunk if is_reply else 1 << 16):
                while is_reply and self.is_silent:
                    time.sleep(0.005)
                time.sleep(self.delay if is_reply else 0)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    if not redis_server.is_installed():
        pytest.skip("redis-server is not installed: `make test` installs it")
    with redis_server.running_redis(folder, *options) as server:
        yield server


@contextlib.contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
