"""How the gateway reaches the servers behind it: TLS, and headers that go with every call."""

from __future__ import annotations

from pathlib import Path

from autoglm_client import TLS, AutoGLMError
from autoglm_client.transport.headers import Metadata, RequestHeaders, read_headers

from autoglm_gateway.settings.error import SettingsError
from autoglm_gateway.settings.model import GatewaySettings


def tls_to_servers(settings: GatewaySettings) -> TLS | None:
    """None without TLS. Raises SettingsError for a file that cannot be used."""
    files = (settings.server_tls_ca, settings.server_tls_cert, settings.server_tls_key, settings.server_tls_name)
    if not (settings.server_tls or any(files)):
        return None
    ca, cert, key, name = (said or None for said in files)
    tls = TLS(ca=ca, cert=cert, key=key, server_name=name)
    try:
        tls.credentials()
    except AutoGLMError as error:
        raise SettingsError(f"TLS to the servers: {error}") from None
    return tls


def headers_to_servers(settings: GatewaySettings, more: RequestHeaders | None = None) -> RequestHeaders | None:
    """Those of `server_headers_file`, and what `more` gives for each request. Raises SettingsError for a file that
    cannot be used."""
    if not settings.server_headers_file:
        return more
    fixed = dict(_read(Path(settings.server_headers_file)))
    return (lambda: fixed | dict(more())) if more else (lambda: fixed)


def _read(path: Path) -> Metadata:
    try:
        return tuple(read_headers(path.read_text(encoding="utf-8"), str(path)).items())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"server_headers_file {path} cannot be read: {error}") from None
    except AutoGLMError as error:
        raise SettingsError(f"server_headers_file: {error}") from None
