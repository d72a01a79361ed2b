"""What a user would pick instead, each in its own process and environment, on the same prompts, in turn with ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoglm_cli.procfs import ProcFs
from autoglm_cli.profile.host import server_processes
from autoglm_cli.server.local_server import LocalServer
from autoglm_export.checkpoint.bundled import find_bundled

from autoglm_perf.in_process.fidelity import Fidelity, FixedTexts, artifact_logits
from autoglm_perf.load.load import measure_load
from autoglm_perf.load.measures import RunFigures
from autoglm_perf.peers.environment import ROOT, Peer, logits, measure, prepare
from autoglm_perf.peers.float_checkpoint import write_float16
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found, Metric
from autoglm_perf.suite.suite import CannotRun
from autoglm_perf.system.memory import peak_of

PERPLEXITY = Metric("perplexity over float32", "", higher_is_better=False, decimals=4)
ERROR = Metric("its standard error", "", higher_is_better=False, decimals=4)
DIVERGENCE = Metric("KL from float32", "nats a token", higher_is_better=False, decimals=4)
MEMORY = Metric("peak memory", "MB", higher_is_better=False)
_TIMED = (TOKENS, LATENCY, FIRST_TOKEN)
_LLAMA = ("llama-cpp-python==0.3.36",)
_OPENVINO = ("openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0")
_ONNX = (
    "onnxruntime-genai==0.18.0",
    "onnx-ir==1.1.0",
    "onnx==1.23.2",
    "torch==2.13.0",
    "transformers==5.23.0",
    "gguf==0.19.0",
    "accelerate==1.15.0",
)
PEERS = (
    Peer("openvino_genai", "int8_sym", "openvino-genai, NNCF int8", _OPENVINO),
    Peer("openvino_genai", "gguf", "openvino-genai, GGUF Q4_1", _OPENVINO),
    Peer("llama_cpp_python", "q4_0", "llama-cpp-python, Q4_0", _LLAMA, num_requests=32),
    Peer("llama_cpp_python", "q8_0", "llama-cpp-python, Q8_0", _LLAMA, num_requests=32),
    Peer("onnxruntime_genai", "int4", "onnxruntime-genai, int4", _ONNX, num_requests=32),
    Peer("transformers_batching", "float32", "transformers continuous batching", num_requests=16),
)
DESCRIPTION = Description(
    "peers",
    "Peers",
    (
        "Through Triton and streaming, ours makes more output tokens a second than the peers make in process, at "
        "no worse perplexity."
    ),
    (*_TIMED, PERPLEXITY, ERROR, DIVERGENCE, MEMORY),
)
_CONCURRENCIES = (16, 1)


@dataclass(slots=True)
class Side:
    """One system: its runs at each number in flight."""

    title: str
    fidelity: Fidelity | None = None
    runs: dict[int, list[RunFigures]] = field(
        default_factory=lambda: {concurrency: [] for concurrency in _CONCURRENCIES}
    )
    peak_mb: dict[int, list[float]] = field(default_factory=lambda: {concurrency: [] for concurrency in _CONCURRENCIES})
    notes: set[str] = field(default_factory=set)

    def label(self, concurrency: int) -> str:
        return f"{self.title}, {concurrency} in flight"

    def arm(self, concurrency: int) -> Arm:
        timed = arm(self.label(concurrency), self.runs[concurrency], _TIMED)
        values = {**timed.values, MEMORY.name: tuple(self.peak_mb[concurrency])}
        if self.fidelity is not None:
            values[PERPLEXITY.name] = (self.fidelity.perplexity_ratio,)
            values[ERROR.name] = (self.fidelity.error,)
            values[DIVERGENCE.name] = (self.fidelity.divergence,)
        return Arm(timed.label, values)


def run(context: Context) -> Found:
    texts = FixedTexts.load(context.tokenizer, find_bundled("smollm2"))
    threads = len(os.sched_getaffinity(0))
    fidelity = texts.compare(artifact_logits(context.artifact, texts.texts, threads))
    ours, plain = Side("ours", fidelity), Side("ours without drafts", fidelity)
    job = _job(texts, threads)
    sides, remarks = _prepared(context, texts, job)
    with context.server() as server, context.server({"AUTOGLM_SPECULATION": "off"}) as without_drafts:
        servers = ((ours, server), (plain, without_drafts))
        for _, one in servers:
            measure_load(one.grpc_url, context.fresh_workload(16), 16)
        for _ in context.repeated("all sides in turn"):
            for concurrency in _CONCURRENCIES:
                for side, one in servers:
                    _measure_ours(context, one, side, concurrency)
                for peer in [peer for peer in PEERS if peer in sides]:
                    if reason := _measure_peer(context, peer, sides[peer], job, concurrency):
                        remarks.append(reason)
                        del sides[peer]
    remarks += [f"{side.title}: {', '.join(sorted(side.notes))}." for side in sides.values()]
    return _found(context, ours, [plain, *sides.values()], remarks)


def _job(texts: FixedTexts, threads: int) -> dict[str, Any]:
    checkpoint = find_bundled("smollm2")
    return {
        "checkpoint": str(checkpoint),
        "float16": str(write_float16(checkpoint, ROOT.resolve() / "models" / "smollm2-float16.gguf")),
        "texts": [ids.tolist() for ids in texts.texts],
        "prompts": [],
        "max_tokens": 0,
        "concurrency": 1,
        "threads": threads,
    }


def _prepared(context: Context, texts: FixedTexts, job: Mapping[str, Any]) -> tuple[dict[Peer, Side], list[str]]:
    """The peers that can run, with their fidelity, and why the others cannot."""
    sides, reasons = dict[Peer, Side](), list[str]()
    for peer in PEERS:
        context.say(f"preparing {peer.title}")
        try:
            prepare(peer, job)
            sides[peer] = Side(peer.title, texts.compare(logits(peer, job)))
        except CannotRun as error:
            reasons.append(f"{peer.title}: left out, {error}.")
    return sides, reasons


def _measure_ours(context: Context, server: LocalServer, side: Side, concurrency: int) -> None:
    workload = context.fresh_workload(_count(context, concurrency, 64))
    side.runs[concurrency].append(
        figures(side.label(concurrency), concurrency, measure_load(server.grpc_url, workload, concurrency))
    )
    assert server.pid is not None, "the server runs"
    side.peak_mb[concurrency].append(peak_of(server_processes(ProcFs(), server.pid).values()))


def _measure_peer(context: Context, peer: Peer, side: Side, job: Mapping[str, Any], concurrency: int) -> str:
    """Why it cannot go on; empty where it can."""
    workload = context.fresh_workload(_count(context, concurrency, peer.num_requests))
    encoded = context.tokenizer.encode_batch(list(workload.prompts), add_special_tokens=False)
    asked = {"prompts": [one.ids for one in encoded], "max_tokens": workload.max_tokens, "concurrency": concurrency}
    try:
        measured = measure(peer, {**job, **asked})
    except CannotRun as error:
        return f"{peer.title}: left out, {error}."
    side.runs[concurrency].append(figures(side.label(concurrency), concurrency, measured.timings))
    side.peak_mb[concurrency].append(measured.peak_mb)
    side.notes.add(measured.note)
    return ""


def _count(context: Context, concurrency: int, full: int) -> int:
    return context.size(full, 16) if concurrency > 1 else context.size(8, 2)


def _found(context: Context, ours: Side, others: Iterable[Side], remarks: list[str]) -> Found:
    sides = [ours, *others]
    arms = tuple(side.arm(concurrency) for concurrency in _CONCURRENCIES for side in sides)
    settings = {
        "W": "128 tokens in, 64 out, greedy",
        "drafts": "ours by prompt lookup where it pays, which is the default; the peers make none",
        "peers": "in process, without a server; one run of each side after the other, again and again",
        "perplexity": "of three fixed texts, each in one window, token by token where the peer decodes so",
        "peak memory": (
            "of the peer's process; ours: of all the server's processes since its start, pages that they share "
            "counted in each"
        ),
        "a ratio": "over ours",
    }
    samples = (
        f"{context.size(64, 16)} requests at 16 in flight (32 or 16 of the slow peers), {context.size(8, 2)} at one"
    )
    baselines = {side.label(concurrency): ours.label(concurrency) for concurrency in _CONCURRENCIES for side in sides}
    return Found(arms, settings, samples, tuple(remarks), baselines)
