"""transformers' own continuous batching, in float32: what follows `generate` for whoever stays with transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autoglm_perf.baselines.naive import load_model
from autoglm_perf.peers.protocol import Job, Timing, serve

_PAGE = 64  # tokens
_BATCH_TOKENS = 256
_WAIT_SECONDS = 60.0


class Transformers:
    def prepare(self, job: Job) -> Path:
        return job.checkpoint

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]:
        import torch

        torch.set_num_threads(job.threads)
        model, _ = load_model(path)
        with _manager(model, job) as manager:
            run(manager, [prompt[::-1] for prompt in job.prompts[:2]], job)  # warm
            return run(manager, job.prompts, job), f"{model.config._attn_implementation}, pages of {_PAGE} tokens"

    def logits(self, path: Path, job: Job) -> list[Any]:
        import torch

        model, _ = load_model(path)
        with torch.inference_mode():
            return [model(torch.tensor([ids])).logits[0].numpy() for ids in job.texts]


def _manager(model: Any, job: Job) -> Any:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    pages = -(-(max(map(len, job.prompts)) + job.max_tokens + 1) // _PAGE)
    config = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=(pages + 1) * job.concurrency,
        max_batch_tokens=_BATCH_TOKENS,
        max_requests_per_batch=job.concurrency,
        allow_block_sharing=False,
    )
    greedy = GenerationConfig(max_new_tokens=job.max_tokens, do_sample=False, eos_token_id=-1)
    return model.continuous_batching_context_manager(greedy, continuous_batching_config=config)


def run(manager: Any, prompts: list[list[int]], job: Job) -> list[Timing]:
    waiting, active = prompts[::-1], dict[str, list[float]]()  # request id -> started, first token
    timings: list[Timing] = []
    while waiting or active:
        while waiting and len(active) < job.concurrency:
            started = time.monotonic()
            active[manager.add_request(waiting.pop(), max_new_tokens=job.max_tokens, streaming=True)] = [started, 0.0]
        if (told := manager.get_result(timeout=_WAIT_SECONDS)) is None or told.error:
            raise RuntimeError(f"it gave nothing for {_WAIT_SECONDS:.0f} s" if told is None else str(told.error))
        now, state = time.monotonic(), active[told.request_id]
        state[1] = state[1] or now
        if told.is_finished():
            timings.append((state[0], state[1], now, len(told.generated_tokens)))
            del active[told.request_id]
    return timings


if __name__ == "__main__":
    serve(Transformers())
