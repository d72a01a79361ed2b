"""OpenVINO GenAI's continuous batching, which reads the GGUF checkpoint itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autoglm_perf.peers.protocol import Job, Timing, serve


def prepare(job: Job) -> Path:
    return job.checkpoint


def load(path: Path, job: Job) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 1, job.concurrency, 256
    scheduler.dynamic_split_fuse = True
    return openvino_genai.ContinuousBatchingPipeline(
        str(path), scheduler, "CPU", {"INFERENCE_NUM_THREADS": job.threads}
    )


def measure(path: Path, job: Job) -> list[Timing]:
    import numpy as np
    import openvino
    import openvino_genai

    pipeline = load(path, job)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = job.max_tokens, True, False

    def submit(number: int, prompt: list[int]) -> list[Any]:
        tokens = openvino.Tensor(np.array([prompt], np.int64))
        return [pipeline.add_request(number, tokens, config), time.monotonic(), 0.0, 0]

    def run(prompts: list[list[int]], offset: int) -> list[Timing]:
        waiting, active = list(enumerate(prompts, offset))[::-1], list[list[Any]]()
        timings: list[Timing] = []
        while waiting or active:
            while waiting and len(active) < job.concurrency:
                active.append(submit(*waiting.pop()))
            pipeline.step()
            now = time.monotonic()
            for state in list(active):
                while state[0].can_read():
                    state[3] += sum(len(output.generated_ids) for output in state[0].read().values())
                    state[2] = state[2] or now
                if state[3] >= job.max_tokens:
                    timings.append((state[1], state[2], now, state[3]))
                    active.remove(state)
        return timings

    run([prompt[::-1] for prompt in job.prompts[:2]], 0)
    return run(job.prompts, 2)


if __name__ == "__main__":
    serve(prepare, measure)
