"""What the gateway counts, for Prometheus. Names are like the engine's, under `autoglm_gateway_`."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from autoglm_client.model_names import ENSEMBLE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from starlette.types import Scope

from autoglm_gateway.paths import GENERATING
from autoglm_gateway.version import software_version

from .observed import CLIENT_LEFT, RequestRecord

PREFIX = "autoglm_gateway"
CACHE_KINDS = ("exact", "semantic", "coalesced")
FAILURE_KINDS = (
    "queue_full",
    "unavailable",
    "connection_lost",
    "deadline",
    "server_error",
    "invalid_value",
    "not_cached",
)

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class _Timed:
    """The series of one model at one endpoint that generates; found once, since looking them up costs more than
    counting."""

    time_to_first_token: Histogram
    time_per_token: Histogram
    cancelled: Counter


class GatewayMetrics:
    """In a registry of its own. `models`: by the names that are served; an alias counts as what it means. `by_tenant`:
    requests and tokens are told apart by tenant, too: as many series as there are tenants."""

    def __init__(self, *, models: Iterable[str] = (ENSEMBLE,), by_tenant: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._models = tuple(models)
        self._by_tenant = by_tenant
        self._requests = self._counter("requests", "Requests that ended, by status; 499: the client left", "status")
        self._in_flight = Gauge(f"{PREFIX}_in_flight", "Requests under way", ["endpoint"], registry=self.registry)
        self._seconds = self._histogram("request_seconds", "Seconds from request to end of answer", _REQUEST_BUCKETS)
        self._prompt = self._counter("tokens_in", "Prompt tokens of complete answers")
        self._completion = self._counter("tokens_out", "Generated tokens of complete answers")
        self._cached = self._counter("tokens_cached", "Prompt tokens whose keys and values were reused")
        self._hits = self._kinds("cache_hits", "Choices answered by a cache, by kind", CACHE_KINDS)
        self._failures = self._kinds("upstream_errors", "Failures of the servers, by kind", FAILURE_KINDS)
        self._timed = self._generating_series()
        Info(f"{PREFIX}_build", "What runs", registry=self.registry).info(_build())
        ProcessCollector(registry=self.registry)

    def began(self, observed: RequestRecord) -> None:
        self._in_flight.labels(observed.endpoint).inc()

    def ended(self, observed: RequestRecord, scope: Scope) -> None:
        endpoint = observed.endpoint
        self._in_flight.labels(endpoint).dec()
        model = observed.served
        self._requests.labels(endpoint, model, str(observed.status), *self._tenant(observed)).inc()
        self._seconds.labels(endpoint, model).observe(observed.seconds)
        for kind in observed.failures:
            self._failures[model, kind if kind in FAILURE_KINDS else "server_error"].inc()
        if timed := self._timed.get((endpoint, model)):
            self._generated(observed, timed)

    def _generated(self, observed: RequestRecord, timed: _Timed) -> None:
        if observed.time_to_first_token is not None:
            timed.time_to_first_token.observe(observed.time_to_first_token)
        if observed.streamed and observed.status == CLIENT_LEFT:
            timed.cancelled.inc()
        for answer in observed.answers:
            if answer.seconds_per_token is not None:
                timed.time_per_token.observe(answer.seconds_per_token)
            if hits := self._hits.get((observed.served, answer.last.cache_hit)):
                hits.inc()
        if observed.answers:
            self._count_tokens(observed)

    def _count_tokens(self, observed: RequestRecord) -> None:
        usages = [answer.last.usage for answer in observed.answers]
        labels = (observed.endpoint, observed.served, *self._tenant(observed))
        self._prompt.labels(*labels).inc(sum(usage.prompt_tokens for usage in usages))
        self._completion.labels(*labels).inc(sum(usage.completion_tokens for usage in usages))
        self._cached.labels(*labels).inc(sum(usage.cached_tokens for usage in usages))

    def _tenant(self, observed: RequestRecord) -> tuple[str, ...]:
        if not self._by_tenant:
            return ()
        return ((observed.caller.tenant if observed.caller else None) or "",)

    def _generating_series(self) -> dict[tuple[str, str], _Timed]:
        first = self._histogram("time_to_first_token_seconds", "Seconds from request to first piece", _TTFT_BUCKETS)
        token = self._histogram(
            "time_per_output_token_seconds", "Seconds a token after the first, of streams", _TOKEN_BUCKETS
        )
        cancelled = Counter(
            f"{PREFIX}_streams_cancelled", "Streams whose client left", ["endpoint", "model"], registry=self.registry
        )
        return {
            names: _Timed(first.labels(*names), token.labels(*names), cancelled.labels(*names))
            for names in product(GENERATING, self._models)
        }

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        names = ["endpoint", "model", *labels, *(["tenant"] if self._by_tenant else [])]
        return Counter(f"{PREFIX}_{name}", description, names, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        names = ["endpoint", "model"]
        return Histogram(f"{PREFIX}_{name}", description, names, buckets=buckets, registry=self.registry)

    def _kinds(self, name: str, description: str, kinds: tuple[str, ...]) -> dict[tuple[str, str], Counter]:
        counter = Counter(f"{PREFIX}_{name}", description, ["model", "kind"], registry=self.registry)
        return {names: counter.labels(*names) for names in product(self._models, kinds)}


def _build() -> dict[str, str]:
    return {"version": software_version(), "python": platform.python_version()}
