"""onnxruntime-genai, of int4 weights made by its own model builder; sequences in batches that run to their end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autoglm_perf.peers.protocol import Job, Timing, serve


class OnnxRuntimeGenAi:
    def prepare(self, job: Job) -> Path:
        target = job.folder / job.variant
        if not (target / "genai_config.json").exists():
            source, cache = job.folder / "source", job.folder / "cache"
            _write_checkpoint(job.checkpoint, source)
            options = ["hf_token=false", "int4_accuracy_level=4"]  # int8 activations
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            command += [
                "-i",
                str(source),
                "-o",
                str(target),
                "-c",
                str(cache),
                "-p",
                job.variant,
                "-e",
                "cpu",
                "--extra_options",
                *options,
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            shutil.rmtree(source)
            shutil.rmtree(cache, ignore_errors=True)
        return target

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]:
        model = _load(path, job.threads)
        run(model, [prompt[::-1] for prompt in job.prompts[: job.concurrency]], 2)  # warm
        timings = list[Timing]()
        for first in range(0, len(job.prompts), job.concurrency):
            timings += run(model, job.prompts[first : first + job.concurrency], job.max_tokens)
        return timings, f"batches of {job.concurrency}, int8 activations"

    def logits(self, path: Path, job: Job) -> list[Any]:
        model = _load(path, job.threads)
        return [_after_each(model, ids) for ids in job.texts]


def _write_checkpoint(gguf: Path, folder: Path) -> None:
    """The weights as transformers reads them, in float32: the builder's own reader of such files does not know them
    all."""
    from transformers import AutoModelForCausalLM

    from autoglm_perf.baselines.naive import load_model

    read, tokenizer = load_model(gguf)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # what transformers read it from; it would refuse to save
    plain = AutoModelForCausalLM.from_config(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _load(path: Path, threads: int) -> Any:
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(path))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return onnxruntime_genai.Model(config)


def _generator(model: Any, count: int, length: int) -> Any:
    """Greedy; `min_length` keeps it from ending before `length` tokens."""
    import onnxruntime_genai

    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(batch_size=count, max_length=length, min_length=length, do_sample=False)
    return onnxruntime_genai.Generator(model, params)


def run(model: Any, prompts: list[list[int]], max_tokens: int) -> list[Timing]:
    """One batch of prompts of one length."""
    import numpy as np

    started, first = time.monotonic(), 0.0
    generator = _generator(model, len(prompts), len(prompts[0]) + max_tokens)
    generator.append_tokens(np.array(prompts, np.int32))
    for _ in range(max_tokens):
        generator.generate_next_token()
        first = first or time.monotonic()
    return [(started, first, time.monotonic(), max_tokens)] * len(prompts)


def _after_each(model: Any, ids: list[int]) -> Any:
    import numpy as np

    generator = _generator(model, 1, len(ids) + 1)
    rows = []
    for token in ids:
        generator.append_tokens(np.array([[token]], np.int32))
        rows.append(np.array(generator.get_logits(), np.float32).reshape(-1))
    return np.stack(rows)


if __name__ == "__main__":
    serve(OnnxRuntimeGenAi())
