"""What a user would pick instead, each in its own process and environment, on the same prompts."""

from __future__ import annotations

import os

from autoglm_export.bundled import find_bundled

from autoglm_perf.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.context import Context
from autoglm_perf.experiment import Arm, Description, Found
from autoglm_perf.load import measure_load
from autoglm_perf.peers.environment import Peer, measure
from autoglm_perf.suite import CannotRun

_METRICS = (TOKENS, REQUESTS, LATENCY, FIRST_TOKEN)
PEERS = (
    Peer("llama_cpp_python", "llama-cpp-python, Q4_0", ("llama-cpp-python==0.3.36",)),
    Peer("openvino_genai", "openvino-genai, GGUF Q4_1", ("openvino-genai==2026.4.1.0",)),
)
_LEFT_OUT = (
    "onnxruntime-genai: left out, its model builder needs a conversion that this command does not do.",
    "transformers' continuous batching: left out, it has no module yet; transformers generate is in the experiment whole-system.",
)
DESCRIPTION = Description(
    "peers",
    "Peers",
    "Through Triton and streaming, ours makes more output tokens a second than the peers make in process.",
    _METRICS,
)


def run(context: Context) -> Found:
    arms, remarks = [], list(_LEFT_OUT)
    for peer in PEERS:
        try:
            arms += [_peer(context, peer, concurrency) for concurrency in (16, 1)]
        except CannotRun as error:
            remarks.append(f"{peer.title}: left out, {error}.")
    with context.server() as server:
        measure_load(server.grpc_url, context.fresh_workload(16), 16)
        ours = [_ours(context, server.grpc_url, concurrency) for concurrency in (16, 1)]
    alike = {other.label: ours[other.label.endswith(" 1 in flight")].label for other in arms}
    settings = {
        "W": "128 tokens in, 64 out, greedy",
        "peers": "in process, without a server; llama.cpp with the number of threads that a trial finds fastest",
        "a peer's ratio": "peer over ours",
    }
    samples = f"{context.size(64, 16)} requests at 16 in flight, {context.size(8, 2)} at one"
    baselines = {ours[1].label: ours[1].label, **alike}
    return Found((*ours, *arms), settings, samples, tuple(remarks), baselines)


def _count(context: Context, concurrency: int) -> int:
    return context.size(64, 16) if concurrency > 1 else context.size(8, 2)


def _ours(context: Context, url: str, concurrency: int) -> Arm:
    label, count = f"ours, {concurrency} in flight", _count(context, concurrency)
    runs = [
        figures(label, concurrency, measure_load(url, context.fresh_workload(count), concurrency))
        for _ in context.repeated(label)
    ]
    return arm(label, runs, _METRICS)


def _peer(context: Context, peer: Peer, concurrency: int) -> Arm:
    label, runs = f"{peer.title}, {concurrency} in flight", []
    for _ in context.repeated(label):
        workload = context.fresh_workload(_count(context, concurrency))
        encoded = context.tokenizer.encode_batch(list(workload.prompts), add_special_tokens=False)
        job = {
            "checkpoint": str(find_bundled("smollm2")),
            "prompts": [one.ids for one in encoded],
            "max_tokens": workload.max_tokens,
            "concurrency": concurrency,
            "threads": len(os.sched_getaffinity(0)),
        }
        runs.append(figures(label, concurrency, measure(peer, job)))
    return arm(label, runs, _METRICS)
