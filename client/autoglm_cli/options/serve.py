"""Options of `autoglm serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from autoglm_client.transport.shared_inputs import KEY_VARIABLE
from autoglm_client.transport.tls import TLS

from autoglm_cli.configuring import CONFIG_VARIABLE
from autoglm_cli.errors import CommandError
from autoglm_cli.paths import BUNDLED_MODEL
from autoglm_cli.server.ports import Address
from autoglm_cli.server.server_tls import ServerTLS

from . import shared
from .connection import TlsCa, TlsCert, TlsKey, TlsName, tls_of

_HTTP_PORT = 8000


@dataclass(frozen=True, slots=True)
class ServedOptions:
    PANEL: ClassVar = "What it serves"

    artifact: shared.Artifact = None
    repository: shared.Repository = None
    export_if_missing: Annotated[
        bool,
        typer.Option("--export-if-missing", help=f"Export the bundled model ({BUNDLED_MODEL}) where there is none."),
    ] = False


@dataclass(frozen=True, slots=True)
class SettingsOptions:
    PANEL: ClassVar = "Settings"

    config: Annotated[
        Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="Settings of the server, a .toml or .json file.")
    ] = None
    print_config: shared.PrintConfig = False
    model: Annotated[
        str | None, typer.Option(help="For --print-config: whose settings, where the repository has several models.")
    ] = None


@dataclass(frozen=True, slots=True)
class PortOptions:
    PANEL: ClassVar = "Where it listens"

    host: Annotated[
        str, typer.Option(help="Address to listen on. Anything but loopback is open to other machines.")
    ] = "127.0.0.1"
    grpc_port: Annotated[int, shared.port("gRPC; 0 takes a free port.")] = 8001
    http_port: Annotated[
        int | None,
        shared.port(f"Triton's HTTP; 0 takes a free port. Off with --gateway, unless given. \\[default: {_HTTP_PORT}]"),
    ] = None
    metrics_port: Annotated[int, shared.port("Metrics; 0 takes a free port.")] = 8002
    shared_memory_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE,
            help="Clients on this machine that know it may send large inputs through shared memory. "
            "\\[default: random]",
        ),
    ] = None

    def addresses(self, *, http: bool) -> dict[str, Address]:
        """By option."""
        ports = {"--http-port": self.http_or_default} if http else {}
        ports |= {"--grpc-port": self.grpc_port, "--metrics-port": self.metrics_port}
        return {option: (self.host, port) for option, port in ports.items()}

    @property
    def http_or_default(self) -> int:
        return _HTTP_PORT if self.http_port is None else self.http_port


@dataclass(frozen=True, slots=True)
class ServerTlsOptions:
    """Of the gRPC port, and of this program where it asks its own server."""

    PANEL: ClassVar = "TLS of the gRPC port"

    grpc_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) with its chain: clients connect with TLS.")
    ] = None
    grpc_tls_key: Annotated[Path | None, typer.Option(help="Private key (PEM) of that certificate.")] = None
    grpc_tls_client_ca: Annotated[
        Path | None, typer.Option(help="Accept only clients with a certificate of these authorities (mutual TLS).")
    ] = None
    tls_ca: TlsCa = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_server_name: TlsName = None

    def server(self) -> ServerTLS | None:
        if self.grpc_tls_cert is None and self.grpc_tls_key is None and self.grpc_tls_client_ca is None:
            return None
        if self.grpc_tls_cert is None or self.grpc_tls_key is None:
            raise CommandError("TLS needs both --grpc-tls-cert and --grpc-tls-key")
        return ServerTLS(cert=self.grpc_tls_cert, key=self.grpc_tls_key, client_ca=self.grpc_tls_client_ca)

    def client(self) -> TLS | None:
        """Raises CredentialsError for a file that cannot be used."""
        return tls_of(False, self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name)


@dataclass(frozen=True, slots=True)
class BesideOptions:
    """The gateway that runs beside the server."""

    PANEL: ClassVar = "OpenAI's HTTP API"

    gateway: Annotated[bool, typer.Option("--gateway", help="Run `autoglm gateway` beside the server.")] = False
    gateway_host: Annotated[
        str | None,
        typer.Option(help="Address the gateway listens on; any but loopback needs keys. \\[default: --host]"),
    ] = None
    gateway_port: Annotated[int, shared.port("Port the gateway listens on; 0 takes a free one.")] = 8080
    gateway_config: Annotated[
        Path | None, typer.Option(envvar=shared.GATEWAY_CONFIG_VARIABLE, help="The gateway's settings, a .toml file.")
    ] = None
