"""What a request passes before the endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from autoglm_gateway.settings.model import GatewaySettings
from autoglm_gateway.telemetry.access_log import AccessLog
from autoglm_gateway.telemetry.log_writer import LogWriter
from autoglm_gateway.telemetry.observing import REQUEST_ID, Observing, Report
from autoglm_gateway.telemetry.traced import Traced

from .body_limit import BodyBounds, BodyLimit
from .guard import Guard
from .head_requests import HeadAsGet
from .key_scheme import describe_keys

if TYPE_CHECKING:
    from autoglm_gateway.telemetry.tracing import Tracing


def add_layers(app: FastAPI, settings: GatewaySettings, log: LogWriter | None, tracing: Tracing | None) -> None:
    """Each is around what was added before: refusals of the guard can be read by web pages, stand in the log and are
    counted, but have no span."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, bounds=BodyBounds.of(settings))
    if tracing:
        app.add_middleware(Traced, tracing=tracing)
    app.add_middleware(Guard, settings=settings)
    if settings.keys:
        describe_keys(app)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's package for browsers adds a dozen of its own
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    reports: list[Report] = [app.state.metrics]
    if log:
        reports.append(AccessLog(log, log_prompts=settings.log_prompts))
    app.add_middleware(Observing, reports=reports)


def access_log(settings: GatewaySettings) -> LogWriter | None:
    """Raises OSError where it cannot be opened."""
    return LogWriter(settings.access_log, settings.access_log_queue) if settings.access_log else None
