"""OpenVINO GenAI's continuous batching, of the checkpoint as it reads it, or of int8 or int4 weights made by NNCF."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from autoglm_perf.peers.protocol import Job, Timing, serve

GGUF = "gguf"  # any other variant is a mode of NNCF


class OpenVino:
    def prepare(self, job: Job) -> Path:
        """The folder of an intermediate representation; OpenVINO reads the file itself, so torch is not needed."""
        target = job.folder / job.variant
        if not (target / "openvino_model.xml").exists():
            source = _represent(job.checkpoint if job.variant == GGUF else job.float16, job.folder / "source")
            source.rename(target) if job.variant == GGUF else _compress(source, target, job.variant)
            shutil.rmtree(source, ignore_errors=True)
        return target

    def measure(self, path: Path, job: Job) -> tuple[list[Timing], str]:
        pipeline = _pipeline(path, job)
        run(pipeline, [prompt[::-1] for prompt in job.prompts[:2]], 0, job)  # warm
        return run(pipeline, job.prompts, 2, job), "defaults (dynamic quantisation, u8 cache)"

    def logits(self, path: Path, job: Job) -> list[Any]:
        import numpy as np
        import openvino

        model = openvino.Core().compile_model(str(path / "openvino_model.xml"), "CPU")
        rows = []
        for ids in job.texts:
            request, length = model.create_infer_request(), len(ids)
            values = {
                "input_ids": np.array([ids], np.int64),
                "attention_mask": np.ones((1, length), np.int64),
                "position_ids": np.arange(length, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            request.infer(values)
            rows.append(request.get_output_tensor(0).data[0].copy())
        return rows


def _represent(checkpoint: Path, folder: Path) -> Path:
    """Saved beside the file it was read from."""
    import openvino_genai

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    link = folder / checkpoint.name
    link.symlink_to(checkpoint)
    openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
    link.unlink()
    return folder


def _compress(source: Path, target: Path, mode: str) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(str(source / "openvino_model.xml"))
    options = {"group_size": 32, "ratio": 1.0} if mode.startswith("int4") else {}
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(mode), **options)
    target.mkdir(exist_ok=True)
    for file in source.glob("openvino_*tokenizer*"):
        shutil.copy(file, target)
    openvino.save_model(model, str(target / "openvino_model.xml"))


def _pipeline(path: Path, job: Job) -> Any:
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 1, job.concurrency, 256
    scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = True, False
    options = {"INFERENCE_NUM_THREADS": job.threads}
    return openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", options)


def run(pipeline: Any, prompts: list[list[int]], offset: int, job: Job) -> list[Timing]:
    waiting, active = list(enumerate(prompts, offset))[::-1], list[list[Any]]()
    timings: list[Timing] = []
    while waiting or active:
        while waiting and len(active) < job.concurrency:
            active.append(_submit(pipeline, *waiting.pop(), job))
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


def _submit(pipeline: Any, number: int, prompt: list[int], job: Job) -> list[Any]:
    """[handle, started, first token, tokens]"""
    import numpy as np
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = job.max_tokens, True, False
    tokens = openvino.Tensor(np.array([prompt], np.int64))
    return [pipeline.add_request(number, tokens, config), time.monotonic(), 0.0, 0]


if __name__ == "__main__":
    serve(OpenVino())
