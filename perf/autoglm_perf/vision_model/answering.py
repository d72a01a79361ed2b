"""What a checkpoint says about screens: through transformers, and through the engine over an exported artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.core import Features, Request, SamplingOptions
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.manifest import Manifest
from autoglm_engine.runners.registry import load_runner
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_engine.tokenizer.prompt import Prompter, load_tokenizer
from autoglm_engine.vision.processor import preprocess
from autoglm_export.parity.reference import Reference
from autoglm_export.screens.questions import ask
from autoglm_export.screens.screen import Box, Screen, draw, png, random_screen
from PIL import Image

MAX_TOKENS = 24
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation whose last turn has the screenshot, and the button that its answer should tap."""

    messages: list[Message]
    screenshot: bytes  # PNG
    target: Box


def held_out(number: int, *, screen: Screen | None = None) -> Asked:
    """A screen that no training has seen, at its phone's size, and one question about it."""
    screen = screen or random_screen(f"held out {number}")
    question = ask(screen, f"held out {number}")
    return Asked(with_screenshot(question.task), png(draw(screen)), question.button.box)


def with_screenshot(text: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


class FrequencyPenalty:
    """OpenAI's definition, which transformers' `generate` does not have: of the completion alone."""

    def __init__(self, num_prompt: int, penalty: float) -> None:
        self._num_prompt, self._penalty = num_prompt, penalty

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`input_ids` [1, length]; `scores` [1, vocab_size], less the penalty for each time a token was said."""
        counts = input_ids[0, self._num_prompt :].bincount(minlength=scores.shape[-1])
        return scores - self._penalty * counts.to(scores.dtype)


class TransformersAnswers:
    """Greedy, in float32, with the processor's Pillow backend, whose bicubic the artifact's equals."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer

        self._reference = Reference.load(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)

    def answer(self, asked: Asked, *, frequency_penalty: float = 0.0) -> str:
        import torch

        image = Image.open(BytesIO(asked.screenshot)).convert("RGB")
        pixels = self._reference.processor(images=[image], return_tensors="pt")
        config, text = self._reference.model.config, self._rendered(asked.messages)
        num_tokens = int(pixels["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
        ids = self._tokenizer(text.replace("<|image|>", "<|image|>" * num_tokens), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            said = self._reference.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == config.image_token_id).int(),
                **pixels,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                logits_processor=[FrequencyPenalty(ids.shape[1], frequency_penalty)],
            )
        return str(self._tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    def _rendered(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


class EngineAnswers:
    """The engine of an artifact, without Triton."""

    def __init__(self, artifact: Path) -> None:
        manifest, threads = Manifest.load(artifact), os.cpu_count() or 1
        self._prompter = Prompter.load(artifact, manifest)
        self._tokenizer = load_tokenizer(artifact)
        self._tower = open_tower(artifact, manifest, num_threads=threads)
        self._runner = load_runner(artifact, manifest, num_threads=threads)
        vision = Vision(self._encode, self._tower.settings.hidden_size)
        ends = manifest.eos_token_ids
        self._engine = Engine(self._runner, TokenText(self._tokenizer), ends, plain_settings(), vision=vision)

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        """All submitted at once; greedy."""
        found: dict[str, list[int]] = {str(number): [] for number in range(len(asked))}
        for number, one in enumerate(asked):
            self._engine.submit(self._request(str(number), one))
        while self._engine.has_work:
            for event in self._engine.step():
                if event.error is not None:
                    raise RuntimeError(event.error)
                found[event.request_id] += event.token_ids
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in found.values()]

    def close(self) -> None:
        self._engine.shut_down()
        self._tower.close()
        self._runner.close()
        self._prompter.close()

    def _encode(self, file: bytes, grid: tuple[int, int], number: int) -> Features:
        return self._tower.encode(preprocess(file, self._tower.settings))

    def _request(self, name: str, asked: Asked) -> Request:
        prompt = self._prompter.from_messages(json.dumps(asked.messages).encode(), images=[asked.screenshot])
        sampling, files = SamplingOptions(max_tokens=MAX_TOKENS), HeldImages(prompt.files)
        return Request(name, np.asarray(prompt.token_ids), sampling, images=prompt.images, image_bytes=files)
