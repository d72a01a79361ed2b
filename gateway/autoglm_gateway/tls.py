"""TLS: uvicorn speaks it, with a certificate and key that were looked at beforehand."""

from __future__ import annotations

import ssl
from typing import Any

from .settings import GatewaySettings
from .settings_error import SettingsError


def tls_options(settings: GatewaySettings) -> dict[str, Any]:
    """Of `uvicorn.Config`."""
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key} if settings.tls_cert else {}


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
