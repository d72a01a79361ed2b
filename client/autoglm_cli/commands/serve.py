"""`autoglm serve`"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from autoglm_client.exceptions import LocalServerError
from autoglm_client.triton_traces import trace_arguments

from autoglm_cli.configuring import check_slots, file_settings, server_environment, serving_settings
from autoglm_cli.errors import CommandError
from autoglm_cli.options import shared
from autoglm_cli.options.groups import grouped
from autoglm_cli.options.serve import BesideOptions, PortOptions, ServedOptions, ServerTlsOptions, SettingsOptions
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
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.ports import Address, check_ports
from autoglm_cli.server.shared_pools import SharedPools
from autoglm_cli.server.triton_command import checked_host, checked_key
from autoglm_cli.server.triton_install import find_triton

from .export import check_exporter, run_export
from .gateway import check_installed, check_python, gateway_models, gateway_settings

if TYPE_CHECKING:
    from autoglm_engine.settings.model import ServingSettings

_STARTING = "starting tritonserver (about 10 s)"


@grouped
def serve(
    *,
    log_file: Annotated[Path | None, typer.Option(help="Write the server's log to this file.")] = None,
    otlp: shared.Otlp = None,
    served: ServedOptions,
    settings: SettingsOptions,
    ports: PortOptions,
    tls: ServerTlsOptions,
    beside: BesideOptions,
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
    folder = repository_folder(served.repository, settings.model)
    from_file = file_settings(settings.config)
    models = {name: serving_settings(folder, from_file, model=name) for name in _ensembles(folder)}
    if settings.print_config:
        _print_settings(models, settings.model)
        return
    _check_early(ports)
    with_http = ports.http_port is not None or not beside.gateway
    gateway = _Gateway.checked(beside, ports.host, otlp, list(models)) if beside.gateway else None
    check_ports(ports.addresses(http=with_http) | (gateway.address() if gateway else {}))
    artifact, paths = _artifacts(served, folder, models)
    env = {**embedder_environment(folder), **server_environment(from_file)}
    server = _server(folder, artifact, env, ports, tls, log_file, otlp, http=with_http)
    with _terminated_like_interrupted(), running(server):
        _tell(server, paths)
        _run(server, gateway)


@dataclass(frozen=True, slots=True)
class _Gateway:
    """What runs beside the server."""

    host: str
    port: int
    config: Path | None
    otlp: str | None
    models: list[str]

    @classmethod
    def checked(cls, chosen: BesideOptions, server_host: str, otlp: str | None, models: list[str]) -> _Gateway:
        """Raises CommandError for what the gateway would refuse once the server runs."""
        check_python()
        check_installed()
        host, config = chosen.gateway_host or server_host, chosen.gateway_config
        gateway_settings(config, {"host": host, **({"otlp": otlp} if otlp else {})})
        return cls(host, chosen.gateway_port, config, otlp, gateway_models(models, config))

    def address(self) -> dict[str, Address]:
        return {"--gateway-port": (self.host, self.port)}

    def beside(self, server: LocalServer) -> AbstractContextManager[Callable[[], None]]:
        return gateway_beside(server, self.host, self.port, self.config, self.otlp, self.models)


def _ensembles(folder: Path) -> list[str]:
    return [family.ensemble for family in families(folder)]


def _print_settings(models: Mapping[str, ServingSettings], chosen: str | None) -> None:
    from autoglm_engine.settings.file import as_toml

    if chosen is None and len(models) > 1:
        raise CommandError(f"each of {', '.join(models)} has settings of its own; name one with --model")
    sys.stdout.write(as_toml(models[chosen or next(iter(models))]))


def _check_early(ports: PortOptions) -> None:
    """What the server would refuse after a model was exported for it."""
    checked_host(ports.host)
    find_triton()
    if ports.shared_memory_key is not None:
        checked_key(ports.shared_memory_key)


def _artifacts(
    served: ServedOptions, folder: Path, models: Mapping[str, ServingSettings]
) -> tuple[Path | None, list[Path]]:
    """What the whole server is told to serve, and the artifact of each model, which is there."""
    pools = list[tuple[Path, int]]()
    _tell_unused(served.artifact, folder)
    artifact = server_artifact(served.artifact, folder)
    for name, settings in models.items():
        chosen = artifact_folder(artifact, folder, name)
        ensure_exported(chosen, export_if_missing=served.export_if_missing)
        check_slots(settings, chosen)
        pools.append((chosen, settings.max_queue))
    SharedPools.of(folder, pools).check()
    return artifact, [path for path, _ in pools]


def _tell_unused(artifact: Path | None, folder: Path) -> None:
    if artifact is not None and all(own_artifact(folder, names) for names in families(folder)):
        notes().print(f"--artifact is not used: every model of {folder} has its own", markup=False, soft_wrap=True)


def _server(
    folder: Path,
    artifact: Path | None,
    env: Mapping[str, str],
    ports: PortOptions,
    tls: ServerTlsOptions,
    log_file: Path | None,
    otlp: str | None,
    *,
    http: bool,
) -> LocalServer:
    return LocalServer(
        folder,
        artifact=artifact,
        env=env,
        host=ports.host,
        http=http,
        http_port=ports.http_or_default,
        grpc_port=ports.grpc_port,
        metrics_port=ports.metrics_port,
        shared_memory_key=ports.shared_memory_key,
        log_file=log_file,
        tls=tls.server(),
        client_tls=tls.client(),
        arguments=trace_arguments(otlp) if otlp else (),
    )


def _tell(server: LocalServer, artifacts: list[Path]) -> None:
    notes().print("\n".join(f"model    {path}" for path in artifacts), soft_wrap=True)
    http_line = f"HTTP     {server.http_url}\n" if server.http else ""
    notes().print(f"gRPC     {server.grpc_url}\n{http_line}metrics  {server.metrics_url}")


def _run(server: LocalServer, gateway: _Gateway | None) -> None:
    try:
        with gateway.beside(server) if gateway else nullcontext() as check:
            notes().print("ready; Ctrl-C stops it")
            _wait(server, check)
    except KeyboardInterrupt:
        notes().print("\nstopping")


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
