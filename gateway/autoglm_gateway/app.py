"""Puts the gateway together: its endpoints, and the layers that a request passes before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from autoglm_client import AsyncClient
from fastapi import FastAPI

from . import completions, information, playground
from .failures import add_error_handlers
from .settings import GatewaySettings
from .upstream import Upstream

MakeClient = Callable[[Sequence[str]], AsyncClient]


def create_app(settings: GatewaySettings, make_client: MakeClient = AsyncClient) -> FastAPI:
    """`make_client`: of the servers' addresses; called when the application starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with make_client(settings.servers) as client:
            app.state.upstream = Upstream(client)
            yield

    app = FastAPI(title="AutoGLM-Triton", lifespan=lifespan)
    app.state.settings = settings
    add_error_handlers(app)
    app.include_router(completions.router)
    app.include_router(information.router)
    app.include_router(playground.make_router())
    return app
