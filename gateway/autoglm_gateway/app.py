"""Puts the gateway together: its endpoints, and the layers that a request passes before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial

from autoglm_client import AsyncClient
from fastapi import FastAPI

from autoglm_gateway.api.document import DocumentedApp
from autoglm_gateway.middleware.layers import access_log, add_layers
from autoglm_gateway.settings.model import GatewaySettings

from .failures import add_error_handlers
from .routes import completions, exposition, information, tokens
from .servers import headers_to_servers, tls_to_servers
from .telemetry.metrics import GatewayMetrics
from .telemetry.traced import tracing_for
from .upstream import Upstreams, timeouts_of
from .web import docs_page, playground

MakeClient = Callable[[Sequence[str], str], AsyncClient]  # of the servers' addresses, for an ensemble


def create_app(settings: GatewaySettings, make_client: MakeClient | None = None) -> FastAPI:
    """`make_client` is called for each model when the application starts. Raises OSError where the access log cannot be
    opened, ValueError where `settings.otlp` is no URL, and SettingsError for files to the servers that cannot be
    used."""
    log, tracing = access_log(settings), tracing_for(settings)
    headers = headers_to_servers(settings, tracing.headers if tracing else None)
    tls = tls_to_servers(settings)

    def default_client(urls: Sequence[str], model: str) -> AsyncClient:
        return AsyncClient(urls, model=model, tls=tls, headers=headers, timeouts=timeouts_of(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with log or nullcontext():
            make = partial(make_client or default_client, settings.servers)
            async with Upstreams(settings.served.values(), make) as upstreams:
                app.state.upstreams = upstreams
                yield
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = DocumentedApp(
        title="AutoGLM-Triton", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.settings = settings
    app.state.metrics = GatewayMetrics(models=settings.served, by_tenant=settings.metrics_by_tenant)
    add_error_handlers(app)
    for part in (completions, tokens, information, exposition, docs_page):
        app.include_router(part.router)
    app.include_router(playground.make_router())
    add_layers(app, settings, log, tracing)
    return app
