"""`autoglm serve`"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from autoglm_client.exceptions import LocalServerError
from autoglm_client.transport.shared_inputs import KEY_VARIABLE
from autoglm_client.triton_traces import trace_arguments

from autoglm_cli.configuring import CONFIG_VARIABLE, check_slots, file_settings, server_environment, serving_settings
from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.options.connection import TlsCa, TlsCert, TlsKey, TlsName, tls_of
from autoglm_cli.output import notes
from autoglm_cli.paths import (
    BUNDLED_MODEL,
    artifact_folder,
    embedder_environment,
    is_exported,
    repository_folder,
    server_artifact,
)
from autoglm_cli.repository.repositories import families, own_artifact
from autoglm_cli.server.gateway_process import gateway_beside
from autoglm_cli.server.local_server import LocalServer, checked_host, checked_key
from autoglm_cli.server.ports import check_ports
from autoglm_cli.server.server_tls import ServerTLS
from autoglm_cli.server.shared_pools import SharedPools
from autoglm_cli.server.triton_install import find_triton

from .export import check_exporter, run_export
from .gateway import GATEWAY_CONFIG_VARIABLE, check_installed, check_python, gateway_models, gateway_settings

_HTTP_PORT = 8000
_STARTING = "starting tritonserver (about 10 s)"


def serve(
    artifact: shared.Artifact = None,
    repository: shared.Repository = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback is open to others.")
    ] = "127.0.0.1",
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="0 takes a free one. With --gateway Triton's HTTP is off unless this is given.",
            show_default="8000",
        ),
    ] = None,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8002,
    shared_memory_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE,
            help="Clients on this host that know it may pass large inputs through shared memory. \\[default: random]",
        ),
    ] = None,
    grpc_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the gRPC port (PEM, with its chain): clients connect with TLS.")
    ] = None,
    grpc_tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    grpc_tls_client_ca: Annotated[
        Path | None, typer.Option(help="Take only clients with a certificate of these authorities (mutual TLS).")
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsName = None,
    log_file: Annotated[Path | None, typer.Option(help="Keep the server's log here.")] = None,
    export_if_missing: Annotated[
        bool,
        typer.Option("--export-if-missing", help=f"Export the bundled model ({BUNDLED_MODEL}) where there is none."),
    ] = False,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Speak OpenAI's HTTP API, too, as `autoglm gateway` does.")
    ] = False,
    gateway_host: Annotated[
        str | None, typer.Option(help="Where the gateway listens; any but loopback needs keys.", show_default="--host")
    ] = None,
    gateway_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    gateway_config: Annotated[
        Path | None, typer.Option(envvar=GATEWAY_CONFIG_VARIABLE, help="Its other settings, a .toml file.")
    ] = None,
    otlp: shared.Otlp = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --print-config: whose settings, of a repository with several.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar=CONFIG_VARIABLE, help="Settings of the server, a .toml or .json file."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in effect, as a file for --config, and leave.")
    ] = False,
) -> None:
    """Run the server in the foreground until Ctrl-C.

    \b
    Examples:
      autoglm serve
      autoglm serve --gateway
      autoglm serve --artifact build/model --grpc-port 9001
      autoglm serve --grpc-tls-cert server.pem --grpc-tls-key server.key --host 0.0.0.0
      autoglm serve --export-if-missing --log-file server.log
      autoglm serve --repository models --gateway
      autoglm serve --config serving.toml --print-config
    """
    folder = repository_folder(repository, model)
    from_file = file_settings(config)
    names = [family.ensemble for family in families(folder)]
    settings = {name: serving_settings(folder, from_file, model=name) for name in names}
    if print_config:
        from autoglm_engine.settings.file import as_toml

        sys.stdout.write(as_toml(settings[_only(names, model)]))
        return
    http = http_port is not None or not gateway
    http_port = _HTTP_PORT if http_port is None else http_port
    _check_early(host, shared_memory_key)
    server_tls = _server_tls(grpc_tls_cert, grpc_tls_key, grpc_tls_client_ca)
    arguments = trace_arguments(otlp) if otlp else ()
    if gateway:
        check_python()
        check_installed()
        gateway_settings(gateway_config, {"host": gateway_host or host, **({"otlp": otlp} if otlp else {})})
    ports = {"--http-port": http_port} if http else {}
    ports |= {"--grpc-port": grpc_port, "--metrics-port": metrics_port}
    beside_port = {"--gateway-port": (gateway_host or host, gateway_port)} if gateway else {}
    models = gateway_models(names, gateway_config) if gateway else []
    check_ports({name: (host, port) for name, port in ports.items()} | beside_port)
    pools = list[tuple[Path, int]]()
    _tell_unused(artifact, folder)
    artifact = server_artifact(artifact, folder)
    for name in names:
        chosen = artifact_folder(artifact, folder, name)
        ensure_exported(chosen, export_if_missing=export_if_missing)
        check_slots(settings[name], chosen)
        pools.append((chosen, settings[name].max_queue))
    SharedPools.of(folder, pools).check()
    server = LocalServer(
        folder,
        artifact=artifact,
        env={**embedder_environment(folder), **server_environment(from_file)},
        host=host,
        http=http,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_file=log_file,
        shared_memory_key=shared_memory_key,
        tls=server_tls,
        client_tls=tls_of(False, tls_ca, tls_cert, tls_key, tls_server_name),
        arguments=arguments,
    )
    with _terminated_like_interrupted(), running(server):
        notes().print("\n".join(f"model    {path}" for path, _ in pools), soft_wrap=True)
        http_line = f"HTTP     {server.http_url}\n" if server.http else ""
        notes().print(f"gRPC     {server.grpc_url}\n{http_line}metrics  {server.metrics_url}")
        try:
            beside = gateway_beside(server, gateway_host or host, gateway_port, gateway_config, otlp, models)
            with beside if gateway else nullcontext() as check:
                notes().print("ready; Ctrl-C stops it")
                _wait(server, check)
        except KeyboardInterrupt:
            notes().print("\nstopping")


def _check_early(host: str, shared_memory_key: str | None) -> None:
    """What the server would refuse after a model was exported for it."""
    checked_host(host)
    find_triton()
    if shared_memory_key is not None:
        checked_key(shared_memory_key)


def _server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTLS | None:
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise CommandError("TLS needs both --grpc-tls-cert and --grpc-tls-key")
    return ServerTLS(cert=cert, key=key, client_ca=client_ca)


def _tell_unused(artifact: Path | None, folder: Path) -> None:
    if artifact is not None and all(own_artifact(folder, names) for names in families(folder)):
        notes().print(f"--artifact is not used: every model of {folder} has its own", markup=False, soft_wrap=True)


def _only(names: list[str], chosen: str | None) -> str:
    if chosen is None and len(names) > 1:
        raise CommandError(f"each of {', '.join(names)} has settings of its own; name one with --model")
    return chosen or names[0]


def _wait(server: LocalServer, check: Callable[[], None] | None) -> None:
    """A server that cannot go on is stopped before its gateway: what is under way ends there with an error that says
    so."""
    try:
        server.wait(check=check)
    except LocalServerError:
        server.stop()
        raise


def ensure_exported(artifact: Path, *, export_if_missing: bool) -> None:
    if is_exported(artifact):
        return
    if not export_if_missing:
        raise CommandError(f"there is no exported model at {artifact}; make one with `autoglm export {BUNDLED_MODEL}`")
    check_exporter()
    notes().print(f"exporting {BUNDLED_MODEL}, this once (about half a minute)", markup=False)
    run_export(BUNDLED_MODEL, artifact, check=False, chosen={})


@contextmanager
def running(server: LocalServer) -> Iterator[None]:
    """The server, started with a line that says how far it is, and stopped in the end."""
    try:
        with notes().status(_STARTING) as status:
            server.start()
            server.wait_ready(progress=lambda seconds, _: status.update(f"{_STARTING} ... {seconds:.0f} s"))
        yield
    finally:
        server.stop()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM (a service manager, a container) stops the server as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
