"""TLS with its connections counted, and given up, from their first moment: a handshake that nobody ends is a
connection, too.

uvicorn and the event loop would tell of a connection once its handshake is done.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any

from autoglm_gateway.addresses import counted_as
from autoglm_gateway.errors import ApiError

from .connection_table import ConnectionTable, OpenConnection


class SecureConnection(SSLProtocol):
    """`carried`: what speaks within TLS; `take_place`: tells it the place that it has. `handshake_s`: for a handshake
    to end."""

    def __init__(
        self,
        carried: asyncio.Protocol,
        take_place: Callable[[OpenConnection], None],
        context: ssl.SSLContext,
        table: ConnectionTable,
        handshake_s: float,
    ) -> None:
        more: dict[str, Any] = {"waiter": None, "server_side": True, "ssl_handshake_timeout": handshake_s}
        super().__init__(asyncio.get_running_loop(), carried, context, **more)
        self._take_place, self._table = take_place, table
        self._place: OpenConnection | None = None

    def connection_made(self, transport: Any) -> None:
        peer = transport.get_extra_info("peername")
        try:
            self._place = self._table.enter(counted_as(peer[0]) if peer else "", transport.abort)
        except ApiError:
            transport.abort()  # there is no way to say why before the handshake
            return
        self._take_place(self._place)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._place is not None:
            self._table.leave(self._place)
        super().connection_lost(exc)
