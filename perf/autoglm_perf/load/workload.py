"""What is asked: prompts of an exact token count, and the reference workload W that every engine is compared on."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Workload:
    """Greedy requests that ignore the end of sequence, so that each answer has exactly `max_tokens` tokens."""

    name: str
    prompts: tuple[str, ...]
    prompt_tokens: int
    max_tokens: int

    def first(self, count: int) -> Workload:
        return Workload(self.name, self.prompts[:count], self.prompt_tokens, self.max_tokens)


def reference_workload(tokenizer: Tokenizer, *, num_prompts: int = 64, seed: int = 0) -> Workload:
    """W: distinct prompts of 128 tokens that share no prefix, 64 new tokens each."""
    return Workload("W", exact_prompts(tokenizer, num_prompts, 128, seed), prompt_tokens=128, max_tokens=64)


def exact_prompts(tokenizer: Tokenizer, num_prompts: int, num_tokens: int, seed: int) -> tuple[str, ...]:
    """Random English words, one token each; the count is checked on the finished text."""
    words = _one_token_words(tokenizer)
    draw = random.Random(seed)
    prompts = tuple("".join(draw.choices(words, k=num_tokens)) for _ in range(num_prompts))
    for prompt in prompts:
        count = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        if count != num_tokens:
            raise AssertionError(f"a prompt has {count} tokens instead of {num_tokens}: {prompt!r}")
    return prompts


def _one_token_words(tokenizer: Tokenizer) -> list[str]:
    texts = (tokenizer.decode([token_id]) for token_id in range(tokenizer.get_vocab_size()))
    words = sorted({text for text in texts if re.fullmatch(" [a-z]{4,10}", text)})
    return [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]


def load_tokenizer(artifact: Path) -> Tokenizer:
    return Tokenizer.from_file(str(artifact / "tokenizer.json"))
