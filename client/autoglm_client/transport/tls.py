"""TLS on the way to a server: whom the client trusts, and who it is itself."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import grpc

from autoglm_client.exceptions import CredentialsError

from .certificate_dates import not_after


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Files in PEM. `ca`: the authorities that are trusted; None: the public ones that gRPC brings. `cert` and `key`:
    the client's own certificate, for servers that ask for one (mutual TLS); the key must not need a password.
    `server_name`: the name that the server's certificate must have, where it is not the address's."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises CredentialsError for a file that cannot be used."""
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise CredentialsError(f"a client's certificate and its key belong together: the {missing} is missing")
        self._check()
        return grpc.ssl_channel_credentials(_bytes_of(self.ca), _bytes_of(self.key), _bytes_of(self.cert))

    @property
    def channel_options(self) -> tuple[tuple[str, str], ...]:
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)

    def _check(self) -> None:
        """gRPC itself would only say that no connection came about."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except OSError as error:  # ssl.SSLError is one
                raise CredentialsError(f"the certificates of {self.ca} cannot be used: {_reason(error)}") from None
        if self.cert is not None and self.key is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=lambda: b"")
            except OSError as error:
                files = f"the certificate {self.cert} and the key {self.key}"
                raise CredentialsError(f"{files} cannot be used: {_reason(error)}") from None
            _check_date(Path(self.cert))


def _check_date(cert: Path) -> None:
    """A server that finds it expired closes the connection and does not say why."""
    try:
        end = not_after(cert.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise CredentialsError(f"the certificate {cert} cannot be read: {error}") from None
    if end < datetime.now(timezone.utc):
        raise CredentialsError(f"the client's certificate {cert} expired on {end:%Y-%m-%d %H:%M} UTC")


def _bytes_of(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
