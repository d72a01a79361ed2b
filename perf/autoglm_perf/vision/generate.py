"""transformers `generate` about screens, one at a time, in a process of its own: no server, no HTTP.

`python -m autoglm_perf.vision.generate`: a JSON object on stdin, `{"checkpoint", "bodies", "threads"}`; the bodies are
files, each a request of `autoglm_perf.vision.chat`. The last line of its output is `[[started, first token, finished],
...]`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoglm_perf.load.measures import RequestTiming
from autoglm_perf.suite.suite import CannotRun

from .chat import ANSWER_TOKENS

_RUN_SECONDS = 1800


def measure(checkpoint: Path, bodies: Sequence[bytes], threads: int) -> list[RequestTiming]:
    """After one that is not counted. Raises CannotRun with the last line of what it said."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        job = {"checkpoint": str(checkpoint), "bodies": [str(file) for file in files], "threads": threads}
        command = [sys.executable, "-m", "autoglm_perf.vision.generate"]
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
        )
    if done.returncode != 0:
        raise CannotRun(f"transformers ended with {done.returncode}: {done.stderr.strip().splitlines()[-1][:300]}")
    timings = json.loads(done.stdout.strip().splitlines()[-1])
    return [RequestTiming(began, first, ended, ANSWER_TOKENS, ()) for began, first, ended in timings]


class Generator:
    """Its parts as users put them together: image processor, chat template, model."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        import transformers
        from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

        self._tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
        self._processor = Glm4vImageProcessorPil.from_pretrained(checkpoint)
        load = transformers.Glm4vForConditionalGeneration.from_pretrained
        self._model = load(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()

    def answer(self, body: dict[str, Any]) -> tuple[float, float, float]:
        """When it began, had its first token, and ended."""
        import torch
        from transformers import StoppingCriteriaList

        started, seen = time.monotonic(), list[float]()

        def note(*given: Any, **more: Any) -> Any:
            seen.append(time.monotonic())
            return torch.zeros(1, dtype=torch.bool)

        limits = {"min_new_tokens": ANSWER_TOKENS, "max_new_tokens": ANSWER_TOKENS, "do_sample": False}
        with torch.inference_mode():
            self._model.generate(**self._inputs(body), **limits, stopping_criteria=StoppingCriteriaList([note]))
        return started, seen[0], time.monotonic()

    def _inputs(self, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        images = self._processor(images=[_image(body)], return_tensors="pt")
        text = self._tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        _, rows, columns = images["image_grid_thw"][0].tolist()
        placeholder = self._model.config.image_token_id
        ids = []
        for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]:
            ids += [token] * (rows * columns // 4 if token == placeholder else 1)
        tokens = torch.tensor([ids])
        return {**images, "input_ids": tokens, "mm_token_type_ids": (tokens == placeholder).int()}


def _image(body: dict[str, Any]) -> Any:
    from PIL import Image

    parts = body["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    return Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def main() -> None:
    import torch

    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    generator = Generator(Path(job["checkpoint"]))
    bodies = [json.loads(Path(file).read_text()) for file in job["bodies"]]
    generator.answer(bodies[0])
    print(json.dumps([generator.answer(body) for body in bodies]))


if __name__ == "__main__":
    main()
