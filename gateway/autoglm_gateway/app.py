"""Puts the gateway together: its endpoints, and the layers that a request passes before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from autoglm_client import AsyncClient
from fastapi import FastAPI

from . import completions, exposition, information
from .failures import add_error_handlers
from .measuring import Measured
from .metrics import GatewayMetrics
from .settings import GatewaySettings
from .traced import Traced, tracing_for
from .upstream import Upstream

MakeClient = Callable[[Sequence[str]], AsyncClient]


def create_app(settings: GatewaySettings, make_client: MakeClient | None = None) -> FastAPI:
    """`make_client`: of the servers' addresses; called when the application starts. Raises ValueError where `settings.otlp` is
    no URL."""
    tracing = tracing_for(settings)
    make_client = make_client or partial(AsyncClient, headers=tracing.headers if tracing else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make_client(settings.servers) as client:
            app.state.upstream = Upstream(client)
            yield
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="AutoGLM-Triton", lifespan=lifespan)
    app.state.settings = settings
    app.state.metrics = GatewayMetrics(by_tenant=settings.metrics_by_tenant)
    add_error_handlers(app)
    app.include_router(completions.router)
    app.include_router(information.router)
    app.include_router(exposition.router)
    if tracing:
        app.add_middleware(Traced, tracing=tracing)
    app.add_middleware(Measured, metrics=app.state.metrics)  # the last one added is the first that a request meets
    return app
