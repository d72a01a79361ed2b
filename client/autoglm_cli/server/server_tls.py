"""TLS of the server's gRPC port, as tritonserver takes it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from autoglm_client.exceptions import LocalServerError
from autoglm_client.transport.tls import TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """Files in PEM: the server's certificate and its key, and `client_ca`, the authorities of clients; where that is
    set, a client without a certificate of theirs is refused (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def arguments(self) -> tuple[str, ...]:
        """Raises LocalServerError for a file that cannot be used; tritonserver itself would end without saying why."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as error:  # ssl.SSLError is one
            named = ", ".join(str(path) for path in (self.cert, self.key, self.client_ca) if path is not None)
            raise LocalServerError(f"the files for TLS ({named}) cannot be used: {error.strerror or error}") from None
        files = ("--grpc-use-ssl=true", f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}")
        mutual = ("--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}") if self.client_ca else ()
        return (*files, *mutual)


def client_tls_of(server: ServerTLS, own: TLS | None) -> TLS:
    """How this program asks its server: it trusts the very certificate, where it is not told of an authority. Raises
    LocalServerError."""
    asked = own or TLS()
    if server.client_ca is not None and asked.cert is None:
        raise LocalServerError(
            "a server that requires clients' certificates is checked with one, too: give --tls-cert and --tls-key "
            "(client_tls)"
        )
    return asked if asked.ca else replace(asked, ca=server.cert)
