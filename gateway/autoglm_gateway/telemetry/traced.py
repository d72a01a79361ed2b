"""The layer that gives each request that generates a span. OpenTelemetry's SDK is loaded only where there are
traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from autoglm_gateway.paths import GENERATING
from autoglm_gateway.settings.model import GatewaySettings

from .observed import observed_in

if TYPE_CHECKING:
    from .tracing import Tracing


class Traced:
    """Within the layer that observes, since it tells what that one saw."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        observed = observed_in(scope)
        if scope["type"] != "http" or observed.endpoint not in GENERATING:
            await self._app(scope, receive, send)
            return
        with self._tracing.request(scope, observed) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                self._tracing.describe(span, observed)


def tracing_for(settings: GatewaySettings) -> Tracing | None:
    """Raises ValueError where `settings.otlp` is no URL."""
    if settings.otlp is None:
        return None
    from .tracing import Tracing

    return Tracing(settings.otlp)
