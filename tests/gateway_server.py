"""A gateway on a socket of its own, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import uvicorn
from autoglm_gateway.serving import listen, make_server
from autoglm_gateway.settings import GatewaySettings


class GatewayThread:
    def __init__(self, settings: GatewaySettings, *, server: uvicorn.Server | None = None) -> None:
        """`server`: of another application than that of `settings`."""
        self._socket = listen("127.0.0.1", 0)
        self._server = server or make_server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> GatewayThread:
        self._thread.start()
        give_up_at = time.monotonic() + 10
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < give_up_at, "the gateway did not start"
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        assert not self._thread.is_alive(), "the gateway did not stop"
