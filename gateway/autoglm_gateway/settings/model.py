"""What the gateway is told when it starts: one frozen object, checked when it is built. `settings.file` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoglm_client.model_names import ENSEMBLE

from autoglm_gateway import priorities
from autoglm_gateway.addresses import is_loopback, is_network

from .error import SettingsError
from .keys import Key
from .ranges import check_ranges

MIB = 1 << 20
REASONING_FORMATS = ("auto", "off", "think", "think-answer")
TOOL_FORMATS = ("auto", "hermes", "llama", "glm", "glm-xml", "mistral")
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "max_body_bytes": (1, 1 << 30),
    "max_image_bytes": (0, 1 << 30),
    "max_held_bytes": (1, 1 << 40),
    "deadline_ms": (1, 86_400_000),
    "requests_per_minute": (0, 1_000_000),
    "concurrency": (0, 1_000_000),
    "priority": (priorities.BEST, priorities.LAST),
    "access_log_queue": (1, 10_000_000),
}
_SERVER = re.compile(r"(?!https?://).+", re.DOTALL)
_ORIGIN = re.compile(r"\*|https?://[^/\s?#@,]+")
_LONGEST_SECONDS = 3600
_CONNECTION_RANGES: dict[str, tuple[float, float]] = {
    "max_connections": (1, 1_000_000),
    "max_connections_per_address": (1, 1_000_000),
    "max_head_bytes": (1024, 1 << 20),
    "head_s": (0.001, _LONGEST_SECONDS),
    "body_s": (0.001, _LONGEST_SECONDS),
    "idle_s": (0.001, _LONGEST_SECONDS),
    "unread_s": (0.001, _LONGEST_SECONDS),
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`max_connections`: open at one time, `max_connections_per_address`: of one address; `max_head_bytes`: of a
    request's line and headers. Seconds: `head_s` for a request's line and headers to arrive, or a TLS handshake to end,
    `body_s` for its body, `idle_s` from one request to the next, `unread_s` until a client that reads nothing of its
    answer is given up."""

    max_connections: int = 1024
    max_connections_per_address: int = 512
    max_head_bytes: int = 64 << 10
    head_s: float = 10
    body_s: float = 30
    idle_s: float = 30
    unread_s: float = 60

    def __post_init__(self) -> None:
        check_ranges(self, _CONNECTION_RANGES)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`SettingsError` is raised for a value outside its range, naming both.

    `host`, `port`: where it listens; port 0 takes a free one.
    `servers`: `host:port` of the gRPC endpoints; of several, the first that works is used. `models`: the names that
    answers carry -> ensembles of the servers; without it `model` is the only name, of the ensemble autoglm. `aliases`:
    other names for them. `max_body_bytes`: of a request; `max_image_bytes`: of its images in base64, beside that, where
    a model reads images; `max_held_bytes`: of all whose answers are under way.
    `deadline_ms`: the most time that an answer may take; None leaves it to the server. `tool_format`: the form in which
    the model calls functions (`tools.parsing`), or "auto" for what its chat template tells. `reasoning_format`: the
    marks by which thinking is told apart (`reasoning.formats`), "auto" for those of its chat template, or "off".

    `keys_file`: who may ask (`keys`); empty: everybody. `open`: everybody may also ask from elsewhere.
    `requests_per_minute`, `concurrency`: of each key that has no limits of its own, or of everybody together where
    there are no keys; 0 is no limit. `priority`: in the same way, of requests, and the best that they may ask for
    (`priorities`). `access_log`: a file, or - for stderr; empty: none. `access_log_queue`: most lines that wait to be
    written; more are dropped and counted. `log_prompts`: prompts are in it. `tls_cert`, `tls_key`: files in PEM; empty:
    no TLS. `allow_origins`: of web pages that may use the gateway (CORS); * is all.

    `trusted_proxies`: addresses and networks of proxies, whose X-Forwarded-For says who asks.

    `metrics_by_tenant`: requests and tokens are counted by tenant, too. `otlp`: of a collector that takes traces, such
    as http://127.0.0.1:4318; None: there are none.

    `server_tls`: connections to the servers are secure, and the public authorities are trusted; `server_tls_ca`: those
    of this file are. `server_tls_cert`, `server_tls_key`: the gateway's own certificate, for servers that ask for one.
    `server_tls_name`: the name in the servers' certificates, where it is not their addresses'. `server_headers_file`:
    headers that go with every call to them, a line each, `Name: value`.

    `keys`: what `keys_file` and the environment held.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    servers: tuple[str, ...] = ("127.0.0.1:8001",)
    model: str = ENSEMBLE
    models: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=lambda: {"autoglm-phone-9b": ENSEMBLE})
    max_body_bytes: int = 4 * MIB
    max_image_bytes: int = 32 * MIB
    max_held_bytes: int = 256 * MIB
    deadline_ms: int | None = None
    tool_format: str = "auto"
    reasoning_format: str = "auto"
    connections: ConnectionLimits = ConnectionLimits()
    keys_file: str = ""
    open: bool = False
    requests_per_minute: int = 0
    concurrency: int = 0
    priority: int = priorities.DEFAULT
    access_log: str = ""
    access_log_queue: int = 10_000
    log_prompts: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    allow_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    metrics_by_tenant: bool = False
    otlp: str | None = None
    keys: tuple[Key, ...] = field(default=(), repr=False)
    server_tls: bool = False
    server_tls_ca: str = ""
    server_tls_cert: str = ""
    server_tls_key: str = ""
    server_tls_name: str = ""
    server_headers_file: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.tool_format not in TOOL_FORMATS:
            raise SettingsError(f"tool_format is {self.tool_format!r:.80}; it must be one of {', '.join(TOOL_FORMATS)}")
        if self.reasoning_format not in REASONING_FORMATS:
            allowed = ", ".join(REASONING_FORMATS)
            raise SettingsError(f"reasoning_format is {self.reasoning_format!r:.80}; it must be one of {allowed}")
        if not self.servers:
            raise SettingsError("servers is empty; it must have one host:port at least")
        for server in self.servers:
            if not _SERVER.fullmatch(server):
                raise SettingsError(f"servers has {server!r:.80}; it must be host:port of a gRPC endpoint")
        if self.max_held_bytes < self.max_body_bytes:
            raise SettingsError(
                f"max_held_bytes is {self.max_held_bytes}; it must be {self.max_body_bytes} (max_body_bytes) at least"
            )
        if self.models and self.model != ENSEMBLE:
            raise SettingsError(f"model is {self.model!r:.80} beside models; one of them says all names")
        for alias, meant in self.aliases.items():
            if meant not in self.served:
                names = ", ".join(map(repr, self.served))
                raise SettingsError(
                    f"the alias {alias!r:.80} means {meant!r:.80}; it must mean the model, {names:.200}"
                )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingsError("tls_cert and tls_key belong together: one of them is missing")
        if bool(self.server_tls_cert) != bool(self.server_tls_key):
            raise SettingsError("server_tls_cert and server_tls_key belong together: one of them is missing")
        if not (self.keys or self.open or is_loopback(self.host)):
            raise SettingsError(
                f"the host {self.host!r:.80} can be reached from elsewhere and there are no keys: "
                "make some with `autoglm gateway-key NAME`, or say --open, which lets everybody in"
            )
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(f"allow_origins has {origin!r:.80}; it must be * or like https://example.org:8443")

        for network in self.trusted_proxies:
            if not is_network(network):
                raise SettingsError(f"trusted_proxies has {network!r:.80}; it must be like 10.0.0.7 or 10.0.0.0/24")

    def meant(self, name: str) -> str | None:
        """The model that `name`, its own or an alias, means; None where it means none."""
        model = self.aliases.get(name, name)
        return model if model in self.served else None

    @property
    def served(self) -> Mapping[str, str]:
        """Names -> ensembles of the servers."""
        return self.models or {self.model: ENSEMBLE}

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.served, *self.aliases)
