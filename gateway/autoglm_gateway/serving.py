"""The gateway as a process: uvicorn on a socket, with TLS where it has a certificate."""

from __future__ import annotations

import socket
import ssl

import uvicorn

from .app import create_app
from .settings import GatewaySettings
from .settings_error import SettingsError


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


def make_server(settings: GatewaySettings) -> uvicorn.Server:
    """Raises OSError for an access log that cannot be opened."""
    tls = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key} if settings.tls_cert else {}
    return uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", access_log=False, **tls))  # type: ignore[arg-type]


def check_tls(settings: GatewaySettings) -> None:
    """Raises SettingsError where certificate and key cannot be used. A key must not need a password: nobody is there to type."""
    if not settings.tls_cert:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        files = f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key}"
        raise SettingsError(f"{files} cannot be used: {error.strerror or error}") from None
