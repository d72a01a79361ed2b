"""TLS: a certificate and key that were looked at before anybody listens."""

from __future__ import annotations

import ssl

from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.model import GatewaySettings


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """None without TLS. Raises SettingsError where certificate and key cannot be used. A key must not need a password:
    nobody is there to type."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # 1.2 and 1.3
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        files = f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key}"
        raise SettingsError(f"{files} cannot be used: {error.strerror or error}") from None
    return context
