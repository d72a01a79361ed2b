"""Endpoints that generate nothing: the models' names, and whether the gateway and its servers are well."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from autoglm_gateway.api import document
from autoglm_gateway.api.answer_schema import Liveness, ModelAnswer, ModelList, Version
from autoglm_gateway.errors import unknown_model
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.upstream import Upstreams
from autoglm_gateway.version import software_version

router = APIRouter()


@router.get("/v1/models", response_model=None, responses=document.information(ModelList))
async def models(request: Request) -> dict[str, Any]:
    """The names that requests may use."""
    settings: GatewaySettings = request.app.state.settings
    return {"object": "list", "data": [_model(name) for name in settings.names]}


@router.get("/v1/models/{name:path}", response_model=None, responses=document.information(ModelAnswer, 404))
async def model(name: str, request: Request) -> dict[str, Any]:
    settings: GatewaySettings = request.app.state.settings
    if settings.meant(name) is None:
        raise unknown_model(name, settings.names)
    return _model(name)


@router.get("/health/live", response_model=None, responses=document.information(Liveness))
async def live() -> dict[str, bool]:
    """The gateway's process answers."""
    return {"live": True}


@router.get("/version", response_model=None, responses=document.information(Version))
async def version() -> dict[str, str]:
    """Of this software, as routers ask for it."""
    return {"version": software_version()}


@router.get("/health", response_model=None, responses=document.readiness())
@router.get("/health/ready", response_model=None, responses=document.readiness())
async def ready(request: Request) -> Response:
    """A server behind it answers, too, with each of the models. What is wrong (it may name addresses) is said where
    nobody needs a key."""
    upstreams: Upstreams = request.app.state.upstreams
    settings: GatewaySettings = request.app.state.settings
    state = await upstreams.health()
    said = {"ready": state.ready} if settings.keys else {"ready": state.ready, "detail": state.detail}
    return JSONResponse(said, 200 if state.ready else 503)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "autoglm-triton"}
