"""The gateway as a process: uvicorn on a socket."""

from __future__ import annotations

import socket

import uvicorn

from .app import MakeClient, create_app
from .connections import protocol_of
from .settings import GatewaySettings
from .tls import tls_options


def listen(host: str, port: int) -> socket.socket:
    """On `port`; 0 takes a free one. Raises OSError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def make_server(settings: GatewaySettings, make_client: MakeClient | None = None) -> uvicorn.Server:
    app, http = create_app(settings, make_client), protocol_of(settings.connections)
    secure = tls_options(settings)
    return uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_level="error", access_log=False, **secure))
