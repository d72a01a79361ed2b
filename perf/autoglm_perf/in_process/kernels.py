"""How long a step of an artifact's runner takes: `python -m autoglm_perf.in_process.kernels ARTIFACT [THREADS]`.

Decode steps of several sizes with 200 tokens of past each, and prefill of one chunk; the best of many, because the
machine may have other work.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from autoglm_engine.core import Span, StepBatch
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.base import Runner
from autoglm_engine.runners.registry import load_runner

PAST = 200
BATCH_SIZES = (1, 4, 8, 16, 32)
REPEATS = 20


def decode_step(size: int) -> StepBatch:
    """One token for each of the first `size` slots, after PAST tokens."""
    token = np.array([7], np.int32)
    return StepBatch(tuple(Span(slot, PAST, token, wants_logits=True) for slot in range(size)))


def prefill_step(runner: Runner) -> StepBatch:
    limits = runner.limits
    ids = np.random.default_rng(0).integers(0, limits.vocab_size, limits.prefill_chunk).astype(np.int32)
    return StepBatch((Span(0, 0, ids, wants_logits=True),))


def fill_slots(runner: Runner) -> None:
    limits = runner.limits
    ids = np.random.default_rng(1).integers(0, limits.vocab_size, PAST).astype(np.int32)
    for slot in range(limits.num_slots):
        for start in range(0, PAST, limits.prefill_chunk):
            part = ids[start : start + limits.prefill_chunk]
            runner.issue(StepBatch((Span(slot, start, part, wants_logits=False),))).result()


def best_ms(runner: Runner, batch: StepBatch) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        runner.issue(batch).result()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder of an exported model")
    parser.add_argument("threads", type=int, nargs="?", default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    measure(given.artifact, given.threads)


def measure(folder: Path, num_threads: int) -> None:
    manifest = Manifest.load(folder)
    runner = load_runner(folder, manifest, num_threads=num_threads)
    try:
        fill_slots(runner)
        for size in (size for size in BATCH_SIZES if size <= runner.limits.num_slots):
            milliseconds = best_ms(runner, decode_step(size))
            print(f"decode {size:3d}: {milliseconds:7.2f} ms, {size / milliseconds * 1e3:6.0f} tokens/s")
        milliseconds = best_ms(runner, prefill_step(runner))
        tokens = runner.limits.prefill_chunk
        print(f"prefill {tokens}: {milliseconds:7.2f} ms, {tokens / milliseconds * 1e3:6.0f} tokens/s")
    finally:
        runner.close()


if __name__ == "__main__":
    main()
