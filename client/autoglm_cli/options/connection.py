"""The options of every command that asks a server: its address, TLS, and headers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from autoglm_client.async_client import DEFAULT_URL, AsyncClient
from autoglm_client.client import Client
from autoglm_client.model_names import ENSEMBLE
from autoglm_client.timeouts import Timeouts
from autoglm_client.transport.headers import read_headers
from autoglm_client.transport.tls import TLS

from autoglm_cli.errors import CommandError
from autoglm_cli.server.hidden_arguments import hide_arguments

from .shared import text_of_file

HEADERS_VARIABLE = "AUTOGLM_HEADERS"
# host:port, an IPv6 address in brackets, or what gRPC has other schemes for.
_ADDRESS = re.compile(r"(\[[^\]/]+\]|[^:/\[\]]+):\d{1,5}|(dns|unix|ipv4|ipv6):.+")
_TLS_HELP = "Connect with TLS and trust public authorities. The next options imply it."

Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="AUTOGLM_URL",
        help="gRPC address of the server. Of several, separated by commas, the first that works is used.",
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", envvar="AUTOGLM_MODEL", help="Model to ask: the name of an ensemble on the server."),
]
Tls = Annotated[bool, typer.Option("--tls", envvar="AUTOGLM_TLS", help=_TLS_HELP)]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", envvar="AUTOGLM_TLS_CA", help="Trust the authorities in this file (PEM).")
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", envvar="AUTOGLM_TLS_CERT", help="Certificate (PEM) of this client, for servers that require one."
    ),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", envvar="AUTOGLM_TLS_KEY", help="Private key (PEM) of that certificate.")
]
TlsName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar="AUTOGLM_TLS_SERVER_NAME",
        help="Name in the server's certificate, where it differs from the address.",
    ),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        help=(
            f"Send 'Name: value' with every request, or the lines of @FILE. Repeatable. Also in ${HEADERS_VARIABLE}."
        ),
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """A server's addresses, the model to ask there, and how it is reached."""

    urls: tuple[str, ...]
    model: str = ENSEMBLE
    tls: TLS | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def client(self, timeouts: Timeouts | None = None) -> Client:
        return Client(self.urls, model=self.model, timeouts=timeouts, tls=self.tls, headers=self.headers)

    def async_client(self, timeouts: Timeouts | None = None) -> AsyncClient:
        return AsyncClient(self.urls, model=self.model, timeouts=timeouts, tls=self.tls, headers=self.headers)


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """`header` holds what others must not read."""

    PANEL: ClassVar = "Connection"

    url: Url = DEFAULT_URL
    model: Model = ENSEMBLE
    tls: Tls = False
    tls_ca: TlsCa = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_server_name: TlsName = None
    header: Header = field(default=None, repr=False)

    def connection(self) -> Connection:
        """Raises CommandError for an address of HTTP, CredentialsError for a file that cannot be used."""
        secure = tls_of(self.tls, self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name)
        return Connection(urls_of(self.url), self.model, secure, headers_of(self.header or ()))


def urls_of(text: str) -> tuple[str, ...]:
    """Raises CommandError for what is no host:port."""
    urls = tuple(part.strip() for part in text.split(",") if part.strip()) or (DEFAULT_URL,)
    if wrong := [url for url in urls if not _ADDRESS.fullmatch(url)]:
        advice = "without http://" if "://" in wrong[0] else f"such as {DEFAULT_URL}"
        raise CommandError(f"the address is {wrong[0]!r}; it must be host:port of a gRPC endpoint, {advice}")
    return urls


def tls_of(tls: bool, ca: Path | None, cert: Path | None, key: Path | None, server_name: str | None) -> TLS | None:
    """None where nothing asks for TLS. Raises CredentialsError where a file cannot be used."""
    if not (tls or ca or cert or key or server_name):
        return None
    made = TLS(ca=ca, cert=cert, key=key, server_name=server_name)
    made.credentials()
    return made


def headers_of(given: tuple[str, ...] | list[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the options and the environment. What was said on the command line is taken out of it, where others could read
    it."""
    headers = read_headers(environ.get(HEADERS_VARIABLE, ""), f"${HEADERS_VARIABLE}")
    for text in given:
        is_file = text.startswith("@")
        headers |= (
            read_headers(text_of_file("--header", Path(text[1:])), text[1:])
            if is_file
            else read_headers(text, "--header")
        )
        if not is_file:
            hide_arguments(os.getpid(), [text.partition(":")[2].strip()])
    return headers
