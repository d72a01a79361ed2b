"""What Triton and the ensemble cost: the engine driven in this process against the same engine behind gRPC."""

from __future__ import annotations

import os

import numpy as np
from autoglm_engine.engine.engine import Engine
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.tokenizer.artifact_texts import load_tokenizer
from autoglm_engine.tokenizer.incremental import TokenText

from autoglm_perf.in_process.in_process import drive
from autoglm_perf.load.load import measure_load
from autoglm_perf.suite.arms import FIRST_TOKEN, LATENCY, REQUESTS, TOKENS, arm, figures
from autoglm_perf.suite.context import Context
from autoglm_perf.suite.experiment import Arm, Description, Found

_METRICS = (TOKENS, REQUESTS, LATENCY, FIRST_TOKEN)
DESCRIPTION = Description(
    "ensemble-overhead",
    "Ensemble overhead",
    (
        "Triton, three models and a load generator on the same cores take a small share of what the engine alone "
        "would give."
    ),
    _METRICS,
)


def run(context: Context) -> Found:
    count = context.size(64, 16)
    alone = _alone(context, count)
    with context.server() as server:
        measure_load(server.grpc_url, context.fresh_workload(16), 16)
        label, url = "through Triton, streaming", server.grpc_url
        runs = [
            figures(label, 16, measure_load(url, context.fresh_workload(count), 16)) for _ in context.repeated(label)
        ]
    return Found((alone, arm(label, runs, _METRICS)), {"W": "128 tokens in, 64 out, 16 in flight"}, f"{count} requests")


def _alone(context: Context, count: int) -> Arm:
    manifest = Manifest.load(context.artifact)
    runner = load_runner(context.artifact, manifest, num_threads=len(os.sched_getaffinity(0)))
    label, runs = "engine alone, in process", []
    try:
        engine = Engine(runner, TokenText(load_tokenizer(context.artifact)), manifest.eos_token_ids)
        for _ in context.repeated(label):
            workload = context.fresh_workload(count)
            encoded = context.tokenizer.encode_batch(list(workload.prompts), add_special_tokens=False)
            ids = [np.array(one.ids, np.int32) for one in encoded]
            runs.append(figures(label, 16, drive(engine, ids, workload.max_tokens, 16)))
    finally:
        runner.close()
    return arm(label, runs, _METRICS)
