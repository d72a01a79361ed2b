"""The options of every command that asks a server: its address, TLS, and headers."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from autoglm_client.transport.headers import read_headers
from autoglm_client.transport.tls import TLS

from autoglm_cli.server.hidden_arguments import hide_arguments

from . import arguments as args
from .errors import CommandError

HEADERS_VARIABLE = "AUTOGLM_HEADERS"
_TLS_HELP = "Connect with TLS; the public authorities are trusted, unless one of the next options says more."

Tls = Annotated[bool, typer.Option("--tls", envvar="AUTOGLM_TLS", help=_TLS_HELP)]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", envvar="AUTOGLM_TLS_CA", help="Trust the authorities in this file (PEM).")
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", envvar="AUTOGLM_TLS_CERT", help="This client's own certificate (PEM).")
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", envvar="AUTOGLM_TLS_KEY", help="The certificate's key (PEM).")
]
TlsName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar="AUTOGLM_TLS_SERVER_NAME",
        help="The name in the server's certificate, where it is not the address's.",
    ),
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        "--header",
        "-H",
        help=(
            "Send 'Name: value' along, or the lines of @FILE; may be given several times, or be in "
            f"${HEADERS_VARIABLE}."
        ),
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """To be given to a client: `Client(connection.urls, tls=connection.tls, headers=connection.headers)`."""

    urls: tuple[str, ...]
    tls: TLS | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def connection_of(
    url: args.Url = args.DEFAULT_URLS,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsName = None,
    header: Header = None,
) -> Connection:
    secure = tls_of(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    return Connection(args.urls_of(url), secure, headers_of(header or ()))


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
        headers |= read_headers(_text_of(Path(text[1:])), text[1:]) if is_file else read_headers(text, "--header")
        if not is_file:
            hide_arguments(os.getpid(), [text.partition(":")[2].strip()])
    return headers


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--header names {path}, which cannot be read: {error}") from None


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options in place of its parameter `connection`."""
    options = inspect.signature(connection_of, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        connection = connection_of(**{name: given.pop(name) for name in options})
        command(connection=connection, **given)

    parts = ((shown,) if name != "connection" else options.values() for name, shown in own.parameters.items())
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in parts for parameter in part]
    with_options.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_options
