"""What the OpenAI-compatible gateway costs: W through it and through the direct client, in turns, on the same
server."""

from __future__ import annotations

import time
from collections.abc import Callable

from autoglm_perf.load.gateway_load import GatewayProcess, gateway_process, idle_connections, measure_gateway
from autoglm_perf.load.load import measure_load
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.load.workload import Workload
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found
from autoglm_perf.system.processes import run_queue_seconds

_METRICS = (TOKENS, REQUESTS, LATENCY, FIRST_TOKEN)
_MAX_ADDED_MS, _MIN_SHARE, _NUM_IDLE = 5.0, 0.9, 500
_TURNS = 3  # a repeat: what is compared differs by less than two runs of one side do
DESCRIPTION = Description(
    "gateway-overhead",
    "Gateway overhead",
    (
        "OpenAI's HTTP API costs at most a tenth of the direct client's tokens a second, and 5 ms of the time to "
        "the first token."
    ),
    _METRICS,
)
Ask = Callable[[Workload, int], list[RequestTiming]]


def run(context: Context) -> Found:
    count, alone = context.size(64, 16), context.size(24, 4)
    with context.server() as server, gateway_process(server.grpc_url) as gateway:
        url = gateway.url

        def direct(workload: Workload, concurrency: int) -> list[RequestTiming]:
            return measure_load(server.grpc_url, workload, concurrency)

        def through(workload: Workload, concurrency: int) -> list[RequestTiming]:
            return measure_gateway(url, workload, concurrency)

        def crowded(workload: Workload, concurrency: int) -> list[RequestTiming]:
            with idle_connections(url, _NUM_IDLE):
                return measure_gateway(url, workload, concurrency)

        sides: dict[str, Ask] = {
            "direct client": direct,
            "gateway": through,
            f"gateway, {_NUM_IDLE} idle connections": crowded,
        }
        for ask in sides.values():
            ask(context.fresh_workload(16), 16)
        cost = _cpu(context, gateway, direct, through, count)
        arms = _in_turns(context, sides, 16, count)
        arms += _in_turns(context, {f"{label}, one in flight": ask for label, ask in sides.items()}, 1, alone)
    half = len(sides)
    baselines = {found.label: arms[at - at % half].label for at, found in enumerate(arms)}
    settings = {"W": "128 tokens in, 64 out", "in flight": "16, then 1", "load": "aiohttp, its events hardly parsed"}
    samples = f"{count} and {alone} requests"
    return Found(tuple(arms), settings, samples, (cost,), baselines=baselines, unmet=_unmet(arms, half))


def _cpu(context: Context, gateway: GatewayProcess, direct: Ask, through: Ask, count: int) -> str:
    """What a request costs beside the server, 16 in flight."""

    def spent(ask: Ask) -> tuple[float, float, float]:
        """ms a request: (this process, the gateway, how long the gateway's threads waited for a core)"""
        workload = context.fresh_workload(count)
        before = _clocks(gateway)
        ask(workload, 16)
        mine, its, waited = (1e3 * (now - then) / count for now, then in zip(_clocks(gateway), before, strict=True))
        return mine, its, waited

    client, _, _ = spent(direct)
    load, its, waited = spent(through)
    return (
        f"CPU a request in ms: the direct client {client:.1f}; the gateway {its:.1f}, and who asks it {load:.1f}. "
        f"The gateway waits {waited:.1f} ms a request for a core that the engine has."
    )


def _clocks(gateway: GatewayProcess) -> tuple[float, float, float]:
    return time.process_time(), gateway.cpu_seconds(), run_queue_seconds([gateway.pid])


def _in_turns(context: Context, sides: dict[str, Ask], concurrency: int, count: int) -> list[Arm]:
    runs: dict[str, list[RunFigures]] = {label: [] for label in sides}
    for _ in context.repeated(", ".join(sides)):
        for _ in range(context.size(_TURNS, 1)):
            for label, ask in sides.items():
                runs[label].append(figures(label, concurrency, ask(context.fresh_workload(count), concurrency)))
    return [arm(label, found, _METRICS) for label, found in runs.items()]


def _unmet(arms: list[Arm], half: int) -> tuple[str, ...]:
    found = []
    share = _median(arms[1], TOKENS.name) / _median(arms[0], TOKENS.name)
    if share < _MIN_SHARE:
        found.append(f"16 streams: {share:.0%} of the direct client's tokens a second, not {_MIN_SHARE:.0%}.")
    for at, load in ((0, "16 streams"), (half, "one in flight")):
        added = _median(arms[at + 1], FIRST_TOKEN.name) - _median(arms[at], FIRST_TOKEN.name)
        if added > _MAX_ADDED_MS:
            found.append(f"{load}: the first token comes {added:.1f} ms later, not {_MAX_ADDED_MS:g}.")
    return tuple(found)


def _median(found: Arm, name: str) -> float:
    values = sorted(found.values[name])
    return values[len(values) // 2]
