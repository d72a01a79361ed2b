"""Starts and stops the real tritonserver of the nvidia-pytriton wheel: for tests, for perf and for `autoglm serve`.

with LocalServer("model_repository", artifact="build/smollm2") as server:
    client = Client(server.grpc_url)
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from autoglm_client.exceptions import LocalServerError
from autoglm_client.model_names import ModelNames
from autoglm_client.transport.tls import TLS

from autoglm_cli.procfs import ProcFs
from autoglm_cli.repository.repositories import families

from .byte_code import compile_models
from .children import start_logged
from .engine_liveness import EngineLiveness, cpu_seconds
from .hidden_arguments import hide_arguments
from .ports import check_ports, chosen_ports, is_listening
from .private_memory import wrapped
from .server_cleanup import Watch
from .server_folder import Process, ServerFolder, sweep
from .server_log import ending_error, last_line, startup_error, unready_reason
from .server_probe import engine_answers, server_is_ready, stub_processes
from .server_tls import ServerTLS, client_tls_of
from .shared_pools import SharedPools
from .triton_command import EXIT_SECONDS, TritonCommand, checked_host
from .triton_install import TritonInstall, find_triton

Progress = Callable[[float, str], None]  # (seconds since the start, what the server does now)

STARTUP_SECONDS = 180.0
_ANSWER_SECONDS = 5.0  # that a control request may take


class LocalServer:
    """One tritonserver on loopback. A port of 0 takes a free one.

    `env` is added to the environment of the server and its models. `log_file` keeps the server's log; without it the
    log is in a temporary folder that goes with the server. The control APIs of Triton (repository, trace, logging,
    shared memory) are closed by a random key, `control_key`, but for shared memory over gRPC: that has a key of its
    own, `shared_memory_key`, for clients on this host (random where it is not given). Both are taken out of the command
    line, which everybody on the machine can read, as soon as the server has read them. Without `http` there is no HTTP
    port, for those who need gRPC alone: Triton's HTTP looks neither at Host nor at Origin, so that web pages can send
    to it, too. `tls`: of the gRPC port, which this program then asks with `client_tls`.
    """

    def __init__(
        self,
        model_repository: str | Path,
        *,
        artifact: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        http: bool = True,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_file: str | Path | None = None,
        arguments: tuple[str, ...] = (),
        shared_memory_key: str | None = None,
        tls: ServerTLS | None = None,
        client_tls: TLS | None = None,
    ) -> None:
        self.model_repository = Path(model_repository).resolve()
        self.host = checked_host(host)
        self.http = http
        self.http_port, self.grpc_port, self.metrics_port = chosen_ports(host, http_port, grpc_port, metrics_port)
        self._command = TritonCommand(
            model_repository=self.model_repository,
            host=host,
            http=http,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            shared_memory_key=shared_memory_key or secrets.token_hex(16),
            arguments=(*(tls.arguments() if tls else ()), *arguments),
        )
        self.control_key, self.shared_memory_key = self._command.keys
        self.families = list[ModelNames]()  # of the repository when the server was started
        self._artifact = Path(artifact).resolve() if artifact else None
        self._env = dict(env or {})
        self.client_tls = client_tls_of(tls, client_tls) if tls else None
        self._chosen_log = Path(log_file) if log_file else None
        self._folder: ServerFolder | None = None
        self._server: Process | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None  # removes what is left when this process is killed
        self._log = self._chosen_log
        self._log_began = 0  # bytes that were in the log before
        self._are_keys_hidden = False
        self._started = 0.0
        self._stubs: dict[int, str] = {}  # the models' processes: pid -> model

    @property
    def http_url(self) -> str:
        assert self.http, "this server has no HTTP port"
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> LocalServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and return at once. Raises LocalServerError when something is not installed, or a port is
        taken. What servers left behind whose processes were killed is removed first."""
        if self._process is not None:
            raise LocalServerError("this server was started already")
        if not self.model_repository.is_dir():
            raise LocalServerError(f"there is no model repository at {self.model_repository}")
        self.families = families(self.model_repository)
        install = find_triton()
        check_ports(self._command.addresses)
        sweep()
        compile_models(self.model_repository)
        self._pools.check()
        try:
            self._launch(install)
        except BaseException:
            self.stop()
            raise

    def _launch(self, install: TritonInstall) -> None:
        self._folder = ServerFolder(self._command.region_prefix)
        self._log = self._chosen_log or self._folder.path / "server.log"
        self._log_began = self._log.stat().st_size if self._log.exists() else 0
        self._are_keys_hidden = False
        self._started = time.monotonic()
        backends = install.assemble_backends(self._folder.path)
        command = wrapped(self._command.words(install, backends, self._pools))
        self._process = start_logged(command, install.environment(self._environment), self._log)
        self._server = Process.of(self._process.pid)
        self._watch = Watch(self._folder.cleanup(self._server))

    def wait_ready(self, timeout: float = STARTUP_SECONDS, progress: Progress | None = None) -> None:
        """Return when all models are loaded and all ports are open. Raises LocalServerError with the reason when they
        cannot be."""
        while not (self.is_ready() and self._listens()):
            self._hide_keys()
            elapsed = time.monotonic() - self._started
            if not self.is_alive():
                raise LocalServerError(f"the server did not start: {startup_error(self.log_text())}")
            if elapsed > timeout:
                raise LocalServerError(
                    f"the server was not ready after {timeout:g} s: {unready_reason(self.log_text())}"
                )
            if progress:
                progress(elapsed, last_line(self.log_text()))
            time.sleep(0.1)
        # Its log may be one that does not grow, or begin with the line of another program.
        hide_arguments(self.pid or 0, self._command.keys)
        self._stubs = self._stubs or stub_processes(self.pid or 0)

    def _listens(self) -> bool:
        """On all its ports: the one that says that it is ready opens first."""
        return all(is_listening(address) for address in self._command.addresses.values())

    def _hide_keys(self) -> None:
        """Once the server has written to its log, it has read its arguments. The programs that become it hand them on,
        so theirs stay, whatever is written meanwhile."""
        has_written = self._log is not None and self._log.stat().st_size > self._log_began
        if not self._are_keys_hidden and has_written and self._is_triton():
            hide_arguments(self.pid or 0, self._command.keys)
            self._are_keys_hidden = True

    def _is_triton(self) -> bool:
        return self.pid is not None and ProcFs().runs(self.pid, find_triton().binary)

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether the server says that all models are loaded. It says so also of a model whose process died."""
        return self.is_alive() and server_is_ready(self.grpc_url, tls=self.client_tls)

    def is_healthy(self, timeout: float = _ANSWER_SECONDS) -> bool:
        """Whether every model's process lives and each engine answers within `timeout` seconds."""
        return bool(self.families) and all(self._is_healthy(names, timeout) for names in self.families)

    def _is_healthy(self, names: ModelNames, timeout: float = _ANSWER_SECONDS) -> bool:
        if not self.is_ready() or self._dead_models():
            return False
        return engine_answers(self.grpc_url, timeout, names.ensemble, tls=self.client_tls)

    def wait(self, poll_seconds: float = 1.0, check: Callable[[], None] | None = None) -> None:
        """Block while the server is well. Raises LocalServerError when it ended or cannot answer any more, and what
        `check` raises, which is called again and again. A server that is too busy to answer is well."""
        liveness = {names: EngineLiveness(partial(self._cpu_seconds, names.engine)) for names in self.families}
        while self.is_alive():
            if check:
                check()
            if dead := self._dead_models():
                others = f" (those of {', '.join(dead[1:])}, too)" if dead[1:] else ""  # maybe taken along by the first
                raise LocalServerError(
                    f"the process of the model {dead[0]} died{others}, so the server cannot answer any more"
                )
            for names, engine in liveness.items():
                if engine.is_dead(answers=self._is_healthy(names)) and self.is_alive():
                    raise LocalServerError(f"the model {names.engine} no longer answers")
            time.sleep(poll_seconds)
        code = self._process.returncode if self._process else None
        raise LocalServerError(f"the server ended with exit code {code}: {ending_error(self.log_text())}")

    def _cpu_seconds(self, model: str) -> float:
        return cpu_seconds(pid for pid, of_model in self._stubs.items() if of_model == model)

    def _dead_models(self) -> list[str]:
        """Engines first: a server may end with its engine, and with it all others."""
        living, engines = stub_processes(self.pid or 0), [names.engine for names in self.families]
        dead = [model for pid, model in self._stubs.items() if pid not in living]
        return sorted(dead, key=lambda model: model not in engines)

    def stop(self, timeout: float = EXIT_SECONDS + 3.0) -> None:
        """End the server: SIGTERM, and SIGKILL when the models' processes have ended, since nothing is left to wait for
        then, or after `timeout` seconds. Models' processes that still run are killed, and nothing is left behind."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._wait_for_exit(timeout)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.remove(self._server)
            self._folder = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _wait_for_exit(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < deadline:
            if self._stubs and not stub_processes(self.pid or 0):
                return
            time.sleep(0.02)

    def log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log and self._log.exists() else ""

    @property
    def _environment(self) -> dict[str, str]:
        artifact = {"AUTOGLM_ARTIFACT": str(self._artifact)} if self._artifact else {}
        return {**os.environ, **self._env, **artifact}

    @property
    def _pools(self) -> SharedPools:
        named = self._environment.get("AUTOGLM_ARTIFACT")
        return SharedPools.of_repository(self.model_repository, Path(named) if named else None)
