"""The gateway as a process: uvicorn on a socket."""

from __future__ import annotations

import resource
import socket

import uvicorn

from autoglm_gateway.addresses import as_seen
from autoglm_gateway.app import MakeClient, create_app
from autoglm_gateway.settings.model import GatewaySettings

from .connections import protocol_of
from .tls import tls_context

_OTHER_FILES = 256  # beside connections


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
    """Raises SettingsError where TLS cannot be, and what `create_app` raises."""
    http = protocol_of(settings.connections, settings.trusted_proxies, tls_context(settings))
    app = create_app(settings, make_client)
    allow_open_files(settings.connections.max_connections)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=http,
            ws="none",
            log_level="error",
            access_log=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=as_seen(settings.trusted_proxies),
        )
    )


def allow_open_files(num_connections: int) -> None:
    """As many as connections take, as far as the system lets; else those who come wait for those who are there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
