"""The servers behind the gateway."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from autoglm_client import AsyncClient, AutoGLMError, ModelLimits

from .errors import api_error

_RENEW_S = 60.0  # a server may come back with another model


class Upstream:
    """`client` with what hardly ever changes about its servers."""

    def __init__(self, client: AsyncClient, clock: Callable[[], float] = monotonic) -> None:
        self.client = client
        self._clock = clock
        self._limits: ModelLimits | None = None
        self._renew_at = 0.0

    async def limits(self) -> ModelLimits:
        """Asked once a minute. Raises ApiError where they were never known."""
        if self._limits is None or self._clock() >= self._renew_at:
            try:
                self._limits = await self.client.limits()
            except AutoGLMError as error:
                if self._limits is None:
                    raise api_error(error) from None
            self._renew_at = self._clock() + _RENEW_S
        return self._limits
