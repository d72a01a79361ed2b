"""Puts the gateway together: its endpoints, and the layers that a request passes before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext

from autoglm_client import AsyncClient
from fastapi import FastAPI

from . import completions, docs_page, information
from .body_limit import BodyBounds, BodyLimit
from .document import DocumentedApp
from .failures import add_error_handlers
from .layers import access_log, add_layers
from .settings import GatewaySettings
from .upstream import Upstream

MakeClient = Callable[[Sequence[str]], AsyncClient]


def create_app(settings: GatewaySettings, make_client: MakeClient = AsyncClient) -> FastAPI:
    """`make_client`: of the servers' addresses; called when the application starts. Raises OSError where the access log
    cannot be opened."""
    log = access_log(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with log or nullcontext():
            async with make_client(settings.servers) as client:
                app.state.upstream = Upstream(client)
                yield

    app = DocumentedApp(title="AutoGLM-Triton", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.add_middleware(BodyLimit, bounds=BodyBounds.of(settings))
    add_error_handlers(app)
    app.include_router(completions.router)
    app.include_router(information.router)
    app.include_router(docs_page.router)
    add_layers(app, settings, log)
    return app
