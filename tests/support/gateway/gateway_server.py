"""A gateway on a socket of its own, in a thread of the test's process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import uvicorn
from autoglm_client import AsyncClient
from autoglm_gateway.app import MakeClient
from autoglm_gateway.server.serving import listen, make_server
from autoglm_gateway.settings.model import GatewaySettings

from tests.support.client.client_fakes import FakeTransport


def fake_client(urls: object, model: str, transport: FakeTransport | None = None) -> AsyncClient:
    """In front of a server that lives in the test."""
    return AsyncClient("fake", model=model, transport=lambda _: transport or FakeTransport())


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """What uvicorn and asyncio log as errors meanwhile; not gRPC's news for a loop that an earlier test closed, which
    goes to whichever loop of the process comes first."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(handler.format(record))  # type: ignore[method-assign]
    handler.addFilter(lambda record: not _is_for_a_closed_loop(record))
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield errors
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _is_for_a_closed_loop(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    is_closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    return is_closed and "PollerCompletionQueue._handle_events" in record.getMessage()


class GatewayThread:
    def __init__(
        self,
        settings: GatewaySettings,
        make_client: MakeClient | None = None,
        *,
        server: uvicorn.Server | None = None,
    ) -> None:
        """`server`: of another application than that of `settings`."""
        self._socket = listen(settings.host, 0)
        self._server = server or make_server(settings, make_client)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> GatewayThread:
        self._thread.start()
        give_up_at = time.monotonic() + 120
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < give_up_at, "the gateway did not start"
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(120)
        self._socket.close()
        assert not self._thread.is_alive(), "the gateway did not stop"
