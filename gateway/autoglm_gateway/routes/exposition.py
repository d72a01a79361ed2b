"""`/metrics`, as Prometheus reads it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from autoglm_gateway.api import document
from autoglm_gateway.telemetry.metrics import GatewayMetrics

router = APIRouter()


@router.get("/metrics", response_class=Response, responses=document.plain("every metric and what it counts"))
async def metrics(request: Request) -> Response:
    """What the gateway counts, for Prometheus."""
    counted: GatewayMetrics = request.app.state.metrics
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    # Some milliseconds for a reader that nobody waits for: not on the loop that streams.
    return Response(await asyncio.to_thread(encode, counted.registry), headers={"Content-Type": content_type})
