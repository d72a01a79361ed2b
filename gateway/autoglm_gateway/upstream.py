"""The servers behind the gateway, and the models on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from types import TracebackType
from typing import Self

from autoglm_client import AsyncClient, AutoGLMError, Health, ModelLimits, Timeouts

from autoglm_gateway.settings.model import GatewaySettings

from .errors import api_error

_RENEW_SECONDS = 60.0  # a server may come back with another model
_GRACE_SECONDS = 5.0
_STILL_SECONDS = 60.0
_HEALTH_SECONDS = 1.0  # for so long whoever asks is told the same


def timeouts_of(settings: GatewaySettings) -> Timeouts:
    """The server's own limits hold, and `deadline_ms`, which the server is told of, with some grace here. A stream that
    has begun and stands still is given up."""
    total = None if settings.deadline_ms is None else settings.deadline_ms / 1000 + _GRACE_SECONDS
    return Timeouts(first_token=None, between_tokens=_STILL_SECONDS, total=total)


class Upstreams:
    """One for each ensemble of the servers, whose clients `make` makes; they live as long as the context."""

    def __init__(self, ensembles: Iterable[str], make: Callable[[str], AsyncClient]) -> None:
        self._clients = {name: make(name) for name in ensembles}
        self._upstreams = {name: Upstream(client) for name, client in self._clients.items()}

    def of(self, ensemble: str) -> Upstream:
        return self._upstreams[ensemble]

    async def reads_images(self) -> bool:
        """Whether one of the models does. Raises ApiError where that was never known."""
        limits = await asyncio.gather(*(upstream.limits() for upstream in self._upstreams.values()))
        return any(one.max_images for one in limits)

    async def health(self) -> Health:
        """Of all of them: ready where each is, else what is wrong with one."""
        states = await asyncio.gather(*(upstream.health() for upstream in self._upstreams.values()))
        return next((state for state in states if not state.ready), states[0])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))


class Upstream:
    """`client` with what hardly ever changes about its servers."""

    def __init__(self, client: AsyncClient, clock: Callable[[], float] = monotonic) -> None:
        self.client = client
        self._clock = clock
        self._limits: ModelLimits | None = None
        self._renew_at = 0.0
        self._health: Health | None = None
        self._health_until = 0.0
        self._asking = asyncio.Lock()

    @property
    def known_limits(self) -> ModelLimits | None:
        """None where they are to be asked for."""
        return self._limits if self._clock() < self._renew_at else None

    async def limits(self) -> ModelLimits:
        """Asked once a minute. Raises ApiError where they were never known."""
        if self._limits is None or self.known_limits is None:
            try:
                self._limits = await self.client.limits()
            except AutoGLMError as error:
                if self._limits is None:
                    raise api_error(error) from None
            self._renew_at = self._clock() + _RENEW_SECONDS
        return self._limits

    async def health(self) -> Health:
        """However many ask, servers are asked once a second."""
        async with self._asking:
            if self._health is None or self._clock() >= self._health_until:
                self._health = await self.client.health()
                self._health_until = self._clock() + _HEALTH_SECONDS
            return self._health
