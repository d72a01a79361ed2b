"""`autoglm gateway` and `autoglm gateway-key`"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from autoglm_client.model_names import ENSEMBLE

from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.output import notes
from autoglm_cli.server.ports import cannot_listen

if TYPE_CHECKING:
    from autoglm_gateway.settings.model import GatewaySettings

GATEWAY_CONFIG_VARIABLE = "AUTOGLM_GATEWAY_CONFIG"
_OLDEST_PYTHON = (3, 11)


def gateway(
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server", help="host:port of a server's gRPC endpoint; may be repeated.", show_default="127.0.0.1:8001"
        ),
    ] = None,
    server_tls: Annotated[
        bool | None,
        typer.Option("--server-tls", help="Connect to the servers with TLS; the public authorities are trusted."),
    ] = None,
    server_tls_ca: Annotated[
        str | None, typer.Option(help="Trust the authorities in this file (PEM) for it.", envvar="AUTOGLM_TLS_CA")
    ] = None,
    server_tls_cert: Annotated[
        str | None,
        typer.Option(help="The gateway's own certificate (PEM) for servers that ask.", envvar="AUTOGLM_TLS_CERT"),
    ] = None,
    server_tls_key: Annotated[
        str | None, typer.Option(help="That certificate's key (PEM).", envvar="AUTOGLM_TLS_KEY")
    ] = None,
    server_tls_name: Annotated[
        str | None,
        typer.Option(
            help="The name in the servers' certificates, where it is not their addresses'.",
            envvar="AUTOGLM_TLS_SERVER_NAME",
        ),
    ] = None,
    server_headers: Annotated[
        str | None, typer.Option(help="File of headers for every call to the servers, a line each, 'Name: value'.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; any but loopback needs keys, or --open.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.", show_default="8080")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name in answers of the server's model autoglm.", show_default="autoglm")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Ensemble of the server to serve by its name, or NAME=ENSEMBLE by another; may be repeated.",
            show_default="autoglm",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name for the model, of several NAME=MODEL; may be repeated.", show_default="autoglm-phone-9b"
        ),
    ] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="The most time that an answer may take.")] = None,
    tool_format: Annotated[
        str | None,
        typer.Option(
            help="How the model writes calls of tools: auto, hermes, llama, glm, glm-xml or mistral.",
            show_default="auto",
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            help="File of API keys, as `autoglm gateway-key` prints them; or $AUTOGLM_GATEWAY_KEYS holds them."
        ),
    ] = None,
    open_to_all: Annotated[
        bool | None, typer.Option("--open", help="Let everybody in without a key, from elsewhere, too.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Of a key that has no limit of its own; 0 is no limit.", show_default="0")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests that such a key may have under way; 0 is no limit.", show_default="0")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            help="Of requests, and the best that they may ask for, -4 (first) to 4, where their key says none.",
            show_default="0",
        ),
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(help="Keep a line of JSON for each request in this file; - is stderr.")
    ] = None,
    log_prompts: Annotated[
        bool | None, typer.Option("--log-prompts", help="What was asked is in the access log, too.")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(help="Certificate in PEM, with its chain.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its private key in PEM.")] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A web page's origin that may use the gateway (CORS), or *; may be repeated.", show_default="none"
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For says who asks; may be repeated.",
            show_default="none",
        ),
    ] = None,
    otlp: shared.Otlp = None,
    metrics_by_tenant: Annotated[
        bool | None, typer.Option("--metrics-by-tenant", help="Count requests and tokens by tenant, too.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar=GATEWAY_CONFIG_VARIABLE, help="Settings of the gateway, a .toml file."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in effect, as a file for --config, and leave.")
    ] = False,
) -> None:
    """Speak OpenAI's HTTP API in front of one or several servers. An option goes before the file's setting.

    \b
    Examples:
      autoglm gateway
      autoglm gateway --port 8080 --server gpu-a:8001 --server gpu-b:8001
      autoglm gateway --host 0.0.0.0 --keys keys.toml --concurrency 8 --access-log access.jsonl
      autoglm gateway --models phone --models fast=chat
      autoglm gateway --config gateway.toml --print-config
      curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
           -d '{"model": "autoglm", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    check_python()
    said = {
        "servers": tuple(server) if server else None,
        "server_tls": server_tls,
        "server_tls_ca": server_tls_ca,
        "server_tls_cert": server_tls_cert,
        "server_tls_key": server_tls_key,
        "server_tls_name": server_tls_name,
        "server_headers_file": server_headers,
        "host": host,
        "port": port,
        "model": model,
        "models": _named(models) if models else None,
        "aliases": _aliases(alias) if alias else None,
        "deadline_ms": deadline_ms,
        "tool_format": tool_format,
        "keys_file": keys,
        "open": open_to_all,
        "requests_per_minute": requests_per_minute,
        "concurrency": concurrency,
        "priority": priority,
        "access_log": access_log,
        "log_prompts": log_prompts,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "otlp": otlp,
        "metrics_by_tenant": metrics_by_tenant,
        "allow_origins": tuple(allow_origin) if allow_origin else None,
        "trusted_proxies": tuple(trusted_proxy) if trusted_proxy else None,
    }
    settings = gateway_settings(config, {name: value for name, value in said.items() if value is not None})
    if print_config:
        from autoglm_gateway.settings.file import as_toml

        sys.stdout.write(as_toml(settings))
        return
    _serve(settings)


def gateway_key(
    name: Annotated[str, typer.Argument(help="Of the tenant: 1 to 64 letters, digits, _ and -.")],
) -> None:
    """Make an API key of the gateway. It is shown once, to stderr; the line for the file of keys, to stdout, holds its
    SHA-256.

    \b
    Examples:
      autoglm gateway-key alice >> keys.toml
    """
    check_python()
    from autoglm_gateway.settings.error import SettingsError
    from autoglm_gateway.settings.keys import line_of, new_key

    key = new_key()
    try:
        line = line_of(name, key)
    except SettingsError as error:
        raise CommandError(str(error)) from None
    notes().print(f"the key of {name}, shown this once:\n\n  {key}\n", soft_wrap=True)
    sys.stdout.write(f"{line}\n")


def check_python() -> None:
    """The client and the models run on older ones, so these commands are there. Raises CommandError."""
    running = running_python()
    if running < _OLDEST_PYTHON:
        needed, found = (".".join(map(str, version)) for version in (_OLDEST_PYTHON, running))
        raise CommandError(f"the gateway needs Python {needed} or later, and this is {found}")


def check_installed() -> None:
    """Without loading it. Raises CommandError."""
    if importlib.util.find_spec("uvicorn") is None:
        raise CommandError("uvicorn is missing: pip install 'autoglm-triton[gateway]'")


def running_python() -> tuple[int, int]:
    return sys.version_info[:2]


def _named(models: list[str]) -> dict[str, str]:
    """`NAME=ENSEMBLE`, or a name that is both."""
    pairs = [
        (name, ensemble if equals else name) for name, equals, ensemble in (text.partition("=") for text in models)
    ]
    return dict(pairs)


def gateway_models(names: list[str], config: Path | None) -> list[str]:
    """What the gateway beside a server is told of its models: nothing where there is autoglm alone, or its file names
    them."""
    from autoglm_gateway.settings.error import SettingsError
    from autoglm_gateway.settings.file import read_settings

    try:
        is_said = config is not None and "models" in read_settings(config)
    except SettingsError as error:
        raise CommandError(str(error)) from None
    return [] if is_said or names == [ENSEMBLE] else names


def _aliases(texts: list[str]) -> tuple[str, ...] | dict[str, str]:
    return _named(texts) if all("=" in text for text in texts) else tuple(texts)


def gateway_settings(config: Path | None, said: dict[str, Any]) -> GatewaySettings:
    """`said`: settings that go before the file's. Raises CommandError."""
    from autoglm_gateway.settings.error import SettingsError
    from autoglm_gateway.settings.file import read_settings, settings_of

    try:
        return settings_of({**(read_settings(config) if config else {}), **said})
    except SettingsError as error:
        raise CommandError(str(error)) from None


def _serve(settings: GatewaySettings) -> None:
    try:
        from autoglm_gateway.server.serving import listen, make_server
    except ImportError as error:
        raise CommandError(f"{error.name} is missing: pip install 'autoglm-triton[gateway]'") from None
    try:
        running = make_server(settings)
        bound = listen(settings.host, settings.port)
    except ValueError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        if error.filename:
            raise CommandError(f"{error.filename}: {error.strerror}") from None
        raise CommandError(cannot_listen(settings.host, settings.port, error, "--port")) from None
    with bound:
        notes().print(_greeting(settings, bound.getsockname()[1]), soft_wrap=True)
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has stopped
            running.run(sockets=[bound])


def _greeting(settings: GatewaySettings, port: int) -> str:
    scheme = "https" if settings.tls_cert else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    who = f"tenants with keys: {len(settings.keys)}" if settings.keys else "no keys: open to everybody who reaches it"
    base = f"{scheme}://{host}:{port}"
    return (
        f"OpenAI   {base}/v1, in front of {', '.join(settings.servers)}; {who}; Ctrl-C stops it\n"
        f"Page     {base}/, to try it from a browser"
    )
