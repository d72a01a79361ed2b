"""The command line that tritonserver is started with."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from autoglm_client.exceptions import LocalServerError
from autoglm_client.transport.shared_inputs import KEY_HEADER

from .ports import Address
from .shared_pools import SharedPools
from .stack_limit import with_stack
from .triton_flags import PING_ARGUMENTS, client_memory_arguments
from .triton_install import TritonInstall

EXIT_SECONDS = 2  # what tritonserver waits for requests under way
CONTROL_APIS = "model-repository,trace,logging,shared-memory"
_CONTROL_HEADER = "autoglm-control-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonCommand:
    """Without `http` there is no HTTP port. `arguments` come last. Raises LocalServerError for a host or a key that
    tritonserver does not take."""

    model_repository: Path
    host: str
    http: bool
    http_port: int
    grpc_port: int
    metrics_port: int
    shared_memory_key: str
    control_key: str = field(default_factory=lambda: secrets.token_hex(16))
    region_prefix: str = field(default_factory=lambda: f"autoglm-{secrets.token_hex(8)}-")
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked_host(self.host)
        checked_key(self.shared_memory_key)

    @property
    def addresses(self) -> dict[str, Address]:
        """Of the open ports, by the names of their settings."""
        http = {"http_port": self.http_port} if self.http else {}
        ports = {**http, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        return {setting: (self.host, port) for setting, port in ports.items()}

    @property
    def keys(self) -> tuple[str, str]:
        """What nobody else is to read in it."""
        return self.control_key, self.shared_memory_key

    def words(self, install: TritonInstall, backends: Path, pools: SharedPools) -> list[str]:
        options = {
            "model-repository": self.model_repository,
            "model-control-mode": "none",
            "backend-directory": backends,
            "backend-config": f"python,shm-region-prefix-name={self.region_prefix}",
            "cache-directory": install.root / "caches",
            "exit-timeout-secs": EXIT_SECONDS,
            "allow-http": str(self.http).lower(),
            "http-address": self.host,
            "http-port": self.http_port,
            "grpc-address": self.host,
            "grpc-port": self.grpc_port,
            "metrics-address": self.host,
            "metrics-port": self.metrics_port,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        flags += [*PING_ARGUMENTS, *client_memory_arguments(install.binary, install.environment(os.environ))]
        return with_stack([str(install.binary), *flags, *pools.arguments, *self._restrictions, *self.arguments])

    @property
    def _restrictions(self) -> tuple[str, ...]:
        control = f"{_CONTROL_HEADER}={self.control_key}"
        return (
            f"--http-restricted-api={CONTROL_APIS}:{control}",
            f"--grpc-restricted-protocol={CONTROL_APIS.removesuffix(',shared-memory')}:{control}",
            f"--grpc-restricted-protocol=shared-memory:{KEY_HEADER}={self.shared_memory_key}",
        )


def checked_host(host: str) -> str:
    """Raises LocalServerError."""
    if ":" in host:
        raise LocalServerError(
            f"the host {host!r} is not an IPv4 address or a host name, which is what tritonserver takes"
        )
    return host


def checked_key(key: str) -> str:
    """Raises LocalServerError."""
    if not re.fullmatch("[A-Za-z0-9_-]{16,128}", key):
        raise LocalServerError(
            f"the shared-memory key has {len(key)} characters; allowed are 16 to 128 letters, digits, - and _"
        )
    return key
