"""`autoglm gateway`"""

from __future__ import annotations

from typing import Annotated

import typer

from . import arguments as args
from .failures import CommandError
from .output import notes


def gateway(
    server: Annotated[
        list[str] | None, typer.Option("--server", help="host:port of a server's gRPC endpoint; may be repeated.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback is open to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    model: Annotated[str, typer.Option(help="The model's name in answers.")] = "autoglm",
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name for the model; may be repeated. [default: autoglm-phone-9b]")
    ] = None,
    deadline_ms: Annotated[int | None, typer.Option(min=1, help="The most time that an answer may take.")] = None,
    otlp: args.Otlp = None,
    metrics_by_tenant: Annotated[
        bool, typer.Option("--metrics-by-tenant", help="Count requests and tokens by tenant, too.")
    ] = False,
) -> None:
    """Speak OpenAI's HTTP API in front of one or several servers.

    \b
    Examples:
      autoglm gateway
      autoglm gateway --port 8080 --server gpu-a:8001 --server gpu-b:8001
      curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
           -d '{"model": "autoglm", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    try:
        from autoglm_gateway.serving import listen, make_server
        from autoglm_gateway.settings import GatewaySettings
    except ImportError as error:
        raise CommandError(f"{error.name} is missing: pip install 'autoglm-triton[gateway]'") from None
    chosen = GatewaySettings(
        servers=tuple(server or ("127.0.0.1:8001",)),
        model=model,
        aliases=dict.fromkeys(alias or ["autoglm-phone-9b"], model),
        deadline_ms=deadline_ms,
        otlp=otlp,
        metrics_by_tenant=metrics_by_tenant,
    )
    try:
        bound = listen(host, port)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    with bound:
        url = f"http://{host}:{bound.getsockname()[1]}"
        notes().print(f"OpenAI   {url}/v1, in front of {', '.join(chosen.servers)}; Ctrl-C stops it")
        make_server(chosen).run(sockets=[bound])
