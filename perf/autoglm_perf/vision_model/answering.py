"""What a checkpoint says about screens: through transformers, and through the engine over an exported artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from autoglm_engine.core import Features, Request, SamplingOptions, TokenIds
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.image_bytes import HeldImages
from autoglm_engine.engine.images.vision import Vision
from autoglm_engine.settings.model import plain_settings
from autoglm_engine.tokenizer.incremental import TokenText
from autoglm_export.parity.reference import Reference
from PIL import Image

from .asked import Asked, Message
from .opened import OpenedArtifact, Rows

MAX_TOKENS = 24


class FrequencyPenalty:
    """OpenAI's definition, which transformers' `generate` does not have: of the completion alone."""

    def __init__(self, num_prompt: int, penalty: float) -> None:
        self._num_prompt, self._penalty = num_prompt, penalty

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`input_ids` [1, length]; `scores` [1, vocab_size], less the penalty for each time a token was said."""
        counts = input_ids[0, self._num_prompt :].bincount(minlength=scores.shape[-1])
        return scores - self._penalty * counts.to(scores.dtype)


@dataclass(frozen=True, slots=True)
class Answer:
    num_prompt: int  # tokens
    text: str
    token_ids: TokenIds  # with the end
    logits: Rows  # [tokens, vocab_size]: what each is chosen from, before any penalty


class TransformersAnswers:
    """Greedy, in float32, with the processor's Pillow backend, whose bicubic the artifact's equals."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer

        self._reference = Reference.load(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)

    def answer(self, asked: Asked, *, frequency_penalty: float = 0.0) -> Answer:
        import torch

        image = Image.open(BytesIO(asked.screenshot)).convert("RGB")
        pixels = self._reference.processor(images=[image], return_tensors="pt")
        config, rendered = self._reference.model.config, self._rendered(asked.messages)
        num_tokens = int(pixels["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
        ids = self._tokenizer(rendered.replace("<|image|>", "<|image|>" * num_tokens), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found = self._reference.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == config.image_token_id).int(),
                **pixels,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                logits_processor=[FrequencyPenalty(ids.shape[1], frequency_penalty)],
                output_logits=True,
                return_dict_in_generate=True,
            )
        said = found.sequences[0, ids.shape[1] :].numpy()
        logits = torch.cat(found.logits).float().numpy()
        text = str(self._tokenizer.decode(said, skip_special_tokens=True))
        return Answer(ids.shape[1], text, said.astype(np.int32), logits)

    def _rendered(self, messages: Sequence[Message]) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


class EngineAnswers:
    """The engine over an opened artifact, without Triton; closing it closes that."""

    def __init__(self, opened: OpenedArtifact) -> None:
        self._opened = opened
        vision = Vision(self._encode, opened.tower.settings.hidden_size)
        text, ends = TokenText(opened.tokenizer), opened.eos_token_ids
        self._engine = Engine(opened.runner, text, ends, plain_settings(), vision=vision)

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
        return [self._opened.tokenizer.decode(ids, skip_special_tokens=True) for ids in found.values()]

    def close(self) -> None:
        self._engine.shut_down()
        self._opened.close()

    def _encode(self, file: bytes, grid: tuple[int, int], number: int) -> Features:
        return self._opened.encode(file)

    def _request(self, name: str, asked: Asked) -> Request:
        prompt = self._opened.prompt(asked)
        sampling, files = SamplingOptions(max_tokens=MAX_TOKENS), HeldImages(prompt.files)
        return Request(name, np.asarray(prompt.token_ids), sampling, images=prompt.images, image_bytes=files)
