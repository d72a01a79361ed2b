"""The servers behind the gateway."""

from __future__ import annotations

from autoglm_client import AsyncClient, AutoGLMError, ModelLimits

from .errors import api_error


class Upstream:
    """`client` with what does not change while its servers run."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._limits: ModelLimits | None = None

    async def limits(self) -> ModelLimits:
        """Asked once. Raises ApiError."""
        if self._limits is None:
            try:
                self._limits = await self.client.limits()
            except AutoGLMError as error:
                raise api_error(error) from None
        return self._limits
