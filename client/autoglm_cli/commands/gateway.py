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
from autoglm_cli.options.gateway import (
    AccessOptions,
    ListenOptions,
    ModelOptions,
    TelemetryOptions,
    UpstreamOptions,
    chosen_settings,
)
from autoglm_cli.options.groups import grouped
from autoglm_cli.output import notes
from autoglm_cli.server.ports import cannot_listen

if TYPE_CHECKING:
    from autoglm_gateway.settings.model import GatewaySettings

_OLDEST_PYTHON = (3, 11)

GatewayConfig = Annotated[
    Path | None,
    typer.Option(
        envvar=shared.GATEWAY_CONFIG_VARIABLE,
        help="Settings of the gateway, a .toml file; options override it.",
    ),
]


@grouped
def gateway(
    *,
    upstream: UpstreamOptions,
    listen: ListenOptions,
    models: ModelOptions,
    access: AccessOptions,
    telemetry: TelemetryOptions,
    config: GatewayConfig = None,
    print_config: shared.PrintConfig = False,
) -> None:
    """Serve OpenAI's HTTP API in front of one or several servers.

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
    settings = gateway_settings(config, chosen_settings(upstream, listen, models, access, telemetry))
    if print_config:
        from autoglm_gateway.settings.file import as_toml

        sys.stdout.write(as_toml(settings))
        return
    _serve(settings)


def gateway_key(
    name: Annotated[str, typer.Argument(help="Of the tenant: 1 to 64 letters, digits, _ and -.")],
) -> None:
    """Make an API key for the gateway.

    The key is printed to stderr, this once. The line for the file of keys goes to stdout and holds only its SHA-256.

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
