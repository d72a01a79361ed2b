"""What a GPU owner has without us: transformers `generate` with a static cache and a compiled step, at the same
shape."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from autoglm_export.model.spec import ModelSpec

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass
class Arrivals:
    """Takes the place of a text streamer: `generate` hands it the prompt and then each step's tokens, on the host."""

    times: list[float] = field(default_factory=list)

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is buffered."""


@dataclass(frozen=True, slots=True)
class GenerateTimes:
    prefill: list[float]  # seconds from the prompt to the first token, one for each call
    decode: list[float]  # seconds between two tokens


def random_model(spec: ModelSpec, dtype: str, device: str) -> Any:
    """A transformers model of the spec's shape with its own random weights, made on the device. `dtype`: of torch."""
    import torch
    import transformers

    config = transformers.Glm4Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_size,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=spec.max_position,
        tie_word_embeddings=spec.tied_embeddings,
        attention_bias=spec.qkv_bias,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval()


def time_generate(model: Any, batch: int, past: int, steps: int, *, warm_up: int, calls: int) -> GenerateTimes:
    """`calls` timed calls of `generate` after `warm_up` others (they compile): `batch` prompts of `past` tokens,
    `steps` decode steps each. On a CPU nothing is compiled."""
    import torch

    torch.compiler.reset()  # else another batch size makes the compiled step one of dynamic shapes, which is slower
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, model.config.vocab_size, (batch, past), generator=generator).to(model.device)
    options = _greedy_options(1 + steps)
    result = GenerateTimes([], [])
    for call in range(warm_up + calls):
        arrivals = Arrivals()
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), generation_config=options, streamer=arrivals
            )
        if call >= warm_up:
            gaps = [after - before for before, after in zip(arrivals.times, arrivals.times[1:], strict=False)]
            result.prefill.append(gaps[0])
            result.decode.extend(gaps[1:])
    return result


def _greedy_options(max_new_tokens: int) -> Any:
    """With a static cache transformers compiles the decode step by itself, with CUDA graphs."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, cache_implementation="static", pad_token_id=0, eos_token_id=None
    )
