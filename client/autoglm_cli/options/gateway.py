"""Options of `autoglm gateway`: fields have the names of the gateway's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from . import shared
from .groups import said

Flag = bool | None
Text = str | None
Texts = list[str] | None
Number = int | None


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    PANEL: ClassVar = "Servers behind the gateway"

    servers: Annotated[
        Texts,
        typer.Option(
            "--server",
            help="gRPC address (host:port) of a server. Repeatable. \\[default: 127.0.0.1:8001]",
        ),
    ] = None
    server_tls: Annotated[
        Flag, typer.Option("--server-tls", help="Connect to the servers with TLS; trust public authorities.")
    ] = None
    server_tls_ca: Annotated[
        Text, typer.Option(help="Trust the authorities in this file (PEM) instead.", envvar="AUTOGLM_TLS_CA")
    ] = None
    server_tls_cert: Annotated[
        Text,
        typer.Option(help="The gateway's certificate (PEM), for servers that require one.", envvar="AUTOGLM_TLS_CERT"),
    ] = None
    server_tls_key: Annotated[
        Text, typer.Option(help="Private key (PEM) of that certificate.", envvar="AUTOGLM_TLS_KEY")
    ] = None
    server_tls_name: Annotated[
        Text,
        typer.Option(
            help="Name in the servers' certificates, where it differs from their address.",
            envvar="AUTOGLM_TLS_SERVER_NAME",
        ),
    ] = None
    server_headers_file: Annotated[
        Text,
        typer.Option("--server-headers", help="File of headers for every call to the servers: 'Name: value' lines."),
    ] = None


@dataclass(frozen=True, slots=True)
class ListenOptions:
    PANEL: ClassVar = "Where it listens"

    host: Annotated[
        Text,
        typer.Option(help="Address to listen on; any but loopback needs --keys or --open. \\[default: 127.0.0.1]"),
    ] = None
    port: Annotated[Number, typer.Option(help="Port to listen on; 0 takes a free one. \\[default: 8080]")] = None
    tls_cert: Annotated[Text, typer.Option(help="Certificate (PEM) with its chain: the gateway speaks HTTPS.")] = None
    tls_key: Annotated[Text, typer.Option(help="Private key (PEM) of that certificate.")] = None
    allow_origins: Annotated[
        Texts,
        typer.Option(
            "--allow-origin",
            help="Origin of web pages that may use the gateway (CORS), or *. Repeatable.",
        ),
    ] = None
    trusted_proxies: Annotated[
        Texts,
        typer.Option(
            "--trusted-proxy",
            help="Proxy (address or network) whose X-Forwarded-For is trusted. Repeatable.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ModelOptions:
    PANEL: ClassVar = "Models"

    model: Annotated[
        Text, typer.Option(help="Name that clients use for the ensemble autoglm. \\[default: autoglm]")
    ] = None
    models: Annotated[
        Texts,
        typer.Option(
            help="Ensemble to serve by its own name, or NAME=ENSEMBLE. Repeatable. \\[default: autoglm]",
        ),
    ] = None
    aliases: Annotated[
        Texts,
        typer.Option(
            "--alias",
            help="Another name for the model, or NAME=MODEL. Repeatable. \\[default: autoglm-phone-9b]",
        ),
    ] = None
    tool_format: Annotated[
        Text,
        typer.Option(
            help="How the model writes tool calls: auto, hermes, llama, glm, glm-xml or mistral. \\[default: auto]"
        ),
    ] = None
    reasoning_format: Annotated[
        Text,
        typer.Option(
            help="How thinking is told apart from answers: auto, off, think or think-answer. \\[default: auto]"
        ),
    ] = None
    deadline_ms: Annotated[Number, typer.Option(help="Longest time for one answer, in milliseconds.")] = None


@dataclass(frozen=True, slots=True)
class AccessOptions:
    PANEL: ClassVar = "Keys and limits"

    keys_file: Annotated[
        Text,
        typer.Option(
            "--keys",
            help="File of API keys, as `autoglm gateway-key` prints them, or $AUTOGLM_GATEWAY_KEYS.",
        ),
    ] = None
    open: Annotated[Flag, typer.Option("--open", help="Let anyone in without a key, from other machines too.")] = None
    requests_per_minute: Annotated[
        Number, typer.Option(help="For each key without a limit of its own; 0 is no limit. \\[default: 0]")
    ] = None
    concurrency: Annotated[
        Number,
        typer.Option(help="Requests in flight, for each key without a limit of its own; 0 is no limit. \\[default: 0]"),
    ] = None
    priority: Annotated[
        Number,
        typer.Option(
            help="Of requests whose key has none, and the best they may ask for: -4 (first) to 4. \\[default: 0]",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    PANEL: ClassVar = "Logs, metrics, traces"

    access_log: Annotated[
        Text, typer.Option(help="Write one line of JSON for each request to this file; - is stderr.")
    ] = None
    log_prompts: Annotated[Flag, typer.Option("--log-prompts", help="Include prompts in the access log.")] = None
    metrics_by_tenant: Annotated[
        Flag, typer.Option("--metrics-by-tenant", help="Count requests and tokens for each tenant, too.")
    ] = None
    otlp: shared.Otlp = None


def chosen_settings(*groups: Any) -> dict[str, Any]:
    """The settings that were chosen on the command line."""
    return {name: _of_setting(name, value) for name, value in said(*groups).items()}


def _of_setting(name: str, value: Any) -> Any:
    match name, value:
        case "models", list():
            return _named(value)
        case "aliases", list():
            return _aliases(value)
        case _, list():
            return tuple(value)
        case _:
            return value


def _named(texts: list[str]) -> dict[str, str]:
    """`NAME=MEANING`, or a name that is both."""
    pairs = (text.partition("=") for text in texts)
    return {name: meaning if equals else name for name, equals, meaning in pairs}


def _aliases(texts: list[str]) -> tuple[str, ...] | dict[str, str]:
    return _named(texts) if all("=" in text for text in texts) else tuple(texts)
