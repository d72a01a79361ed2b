"""What every endpoint with a body does first: the model that is meant, what it takes, and the size of the body."""

from __future__ import annotations

from autoglm_client import ModelLimits
from fastapi import Request

from autoglm_gateway.errors import body_too_large, unknown_model
from autoglm_gateway.middleware.body_limit import BODY_BYTES
from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.observed import observed_in
from autoglm_gateway.upstream import Upstream, Upstreams

from .departures import cancel_on_disconnect


def upstream_of(name: str, request: Request) -> Upstream:
    """Of the model that is called so. Raises ApiError where there is none."""
    settings: GatewaySettings = request.app.state.settings
    upstreams: Upstreams = request.app.state.upstreams
    if (model := settings.meant(name)) is None:
        raise unknown_model(name, settings.names)
    observed = observed_in(request.scope)
    observed.model, observed.served = name, model
    return upstreams.of(settings.served[model])


async def limits_of(request: Request, upstream: Upstream) -> ModelLimits:
    """What is known already costs no turn of the event loop: a request that is refused is gone before the next."""
    if (known := upstream.known_limits) is not None:
        return known
    return await cancel_on_disconnect(request.receive, upstream.limits())


def check_size(request: Request, num_image_bytes: int) -> None:
    """Of the body without its images; with them it is within the bounds. Raises ApiError."""
    settings: GatewaySettings = request.app.state.settings
    if getattr(request.state, BODY_BYTES, 0) - num_image_bytes > settings.max_body_bytes:
        raise body_too_large(settings.max_body_bytes, "the body without its images")
